"""Seconds and memory of fitting a logistic probe for every latent and class of a segmentation.

    python benchmarks/probes.py [--patches 1000000] [--latents 16384] [--classes 151] [--k 32] [--threads 2]

Codes are made up: k latents a patch on average, with densities over three decades; half of the latents fire mostly on patches of one class, the others anywhere; class
frequency is 1 / rank. Peak memory is what the process held at most, over what it held when codes were made. The limit beside it: one exponential of as many numbers
as there are (entry, class) pairs, on the same threads, which every step of every fit needs at least once.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.sparse import csc_array

from evals.segmentation import ROWS, fit_probes


def made_up(patches: int, latents: int, classes: int, k: int, seed: int = 0) -> tuple[csc_array, np.ndarray]:
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, classes + 1)
    labels = np.sort(rng.choice(classes, patches, p=frequency / frequency.sum()))
    labels[:classes] = np.arange(classes)  # no class is without a patch
    members = [np.flatnonzero(labels == c) for c in range(classes)]
    density = 10.0 ** rng.uniform(-3, 0, latents)
    sizes = np.maximum(1, np.minimum(density / density.sum() * k * patches, patches / 4)).astype(int)
    rows = []
    for latent, size in enumerate(sizes):
        found = rng.choice(patches, size, replace=False, shuffle=False)
        if latent % 2:
            own = members[rng.integers(classes)]
            found[: int(0.7 * min(size, len(own)))] = rng.choice(own, int(0.7 * min(size, len(own))), replace=False)
        rows.append(np.unique(found))
    indptr = np.concatenate([[0], np.cumsum([len(each) for each in rows])])
    indices = np.concatenate(rows).astype(np.int32)
    return csc_array((rng.exponential(1, len(indices)).astype(np.float32), indices, indptr), (patches, latents)), labels


def limit(pairs: int, classes: int, threads: int) -> float:
    """Seconds of one pass of exp over `pairs` numbers, from a hundredth of them."""
    part = -np.random.default_rng(0).exponential(1, (ROWS, classes))
    turns = max(1, pairs // 100 // part.size)

    def work(n: int) -> None:
        for _ in range(n):
            np.exp(part)

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [turns // threads] * threads))
    return (time.perf_counter() - start) * pairs / (turns // threads * threads * part.size)


def held(what: str) -> float:
    """MB of this process, now (VmRSS) or at most (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("patches", 1_000_000), ("latents", 16_384), ("classes", 151), ("k", 32), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    o = parser.parse_args()
    codes, labels = made_up(o.patches, o.latents, o.classes, o.k)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making them up
    before = held("VmRSS")
    start, used = time.perf_counter(), time.process_time()
    found = fit_probes(codes, labels, o.classes, threads=o.threads)
    clock, used = time.perf_counter() - start, time.process_time() - used
    peak = held("VmHWM") - before
    answer = sum(each.nbytes for each in (found.weight, found.bias, found.loss)) / 2**20
    least = limit(codes.nnz * o.classes, o.classes, o.threads)
    sparse = (codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes) / 2**20
    densest = np.diff(codes.indptr).max()
    print(
        f"{o.patches:,} patches, {o.latents:,} latents, {o.classes} classes, {codes.nnz:,} entries (the densest latent: {densest:,}), {o.threads} threads\n"
        f"{clock:.0f} s by the clock, {used:.0f} s of processor, {used / codes.nnz * 1e6:.1f} microseconds an entry\n"
        f"one exponential of every (entry, class): {least:.0f} s; {clock / least:.1f} x\n"
        f"memory: codes {sparse:.0f} MB; over them {peak:.0f} MB at most, {answer:.0f} of it the answer"
    )


if __name__ == "__main__":
    main()
