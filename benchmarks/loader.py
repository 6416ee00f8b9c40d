"""Shuffled reading of a store, as a ratio to sequential reading of the same files and to memcpy.

    python benchmarks/loader.py [--gigabytes 2.1] [--d-model 768] [--rounds 5] [--folder DIR]

Sequential: every shard read from first to last byte with `readinto` into one buffer, of 1 MB (stays in cache: the most a reader can be given, and
no place to keep what it read) and of the size of a pool (what a reader pays that keeps what it read). Shuffled: `StoreSource` batches of 4096 rows,
from making the iterator on; one epoch cold, three warm. The contestants take turns (A-B-A-B); medians. Cold: the files' pages are dropped before each turn with
posix_fadvise(DONTNEED), which works for clean pages on any file system that has them; the share still cached afterwards is printed.
"""

import argparse
import ctypes
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vsae.activations import ActivationStore, StoreSource, write_store

KINDS = ("cls", "register", "patch", "image", "text", "special", "pad")
TOKENS = 257


class Tokens:
    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.kinds = torch.tensor([0] + [2] * (TOKENS - 1), dtype=torch.uint8).repeat(len(values), 1)
        self.grid = (16, 16)


class Chunk:
    def __init__(self, batch: int, d_model: int, size: int = 32) -> None:
        values = torch.randn(size, TOKENS, d_model, generator=torch.Generator().manual_seed(batch))
        self.batch, self.bad, self.activations = batch, (), {"blocks.11": Tokens(values)}
        self.samples = [{"key": f"{batch}-{i}", "path": f"{batch}/{i}.jpg"} for i in range(size)]


def make_store(folder: Path, gigabytes: float, d_model: int) -> ActivationStore:
    n = max(1, round(gigabytes * 1e9 / (32 * TOKENS * d_model * 2)))
    request = {"model": {"name": "random"}, "data": {"gigabytes": gigabytes}}
    return write_store(
        folder / "store", lambda start: (Chunk(b, d_model) for b in range(start, n)), request, kind_names=KINDS
    )


def sequential(files: list[Path], buffer: memoryview) -> int:
    total = 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                total += n
    return total


def shuffled(source: StoreSource, epochs: int) -> int:
    rows = sum(len(batch.values) for batch in source.batches(4096, 0, epochs=epochs))
    return rows * source.d_model * source.site.dtype.itemsize


def memcpy(a: np.ndarray, b: np.ndarray) -> int:
    np.copyto(a, b)
    return a.nbytes


def drop(files: list[Path]) -> float:
    """Drop the files from the page cache. Returns the share that stayed."""
    stayed = pages = 0
    libc = ctypes.CDLL(None)
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(descriptor).st_size
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as view:
            states = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
            libc.mincore(
                ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(view))), ctypes.c_size_t(size), states
            )
            resident = np.frombuffer(states, np.uint8) & 1
            stayed, pages = stayed + int(resident.sum()), pages + len(resident)
        os.close(descriptor)
    return stayed / pages


def compare(contestants: dict[str, Callable[[], int]], rounds: int, before: Callable[[], object]) -> dict[str, float]:
    """Median GB/s of each, taking turns."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            before()
            start = time.perf_counter()
            n = run()
            rates[name].append(n / (time.perf_counter() - start) / 1e9)
    return {name: statistics.median(values) for name, values in rates.items()}


def report(title: str, rates: dict[str, float], row_bytes: int) -> None:
    print(f"\n{title}")
    for name, rate in rates.items():
        print(f"  {name:<34} {rate:6.2f} GB/s  {rate * 1e6 / row_bytes:7.0f} k rows/s")
    for name in rates:
        if name.startswith("shuffled"):
            ratios = ", ".join(
                f"{rates[name] / rate:.2f} x {other}"
                for other, rate in rates.items()
                if not other.startswith("shuffled")
            )
            print(f"  {name} = {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the store is made (default: the folder for temporary files)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        start = time.perf_counter()
        store = make_store(Path(folder), arguments.gigabytes, arguments.d_model)
        site = store.site()
        files = [site.part_path(part) for part in range(len(site.entry["shards"]))]
        total = sum(path.stat().st_size for path in files)
        print(
            f"{site.n_rows} rows of {site.d_model} in {len(files)} shards, {total / 1e9:.2f} GB, made in {time.perf_counter() - start:.0f} s"
        )
        sources = {threads: StoreSource(site, threads=threads) for threads in (1, 2, 4)}
        small, large = memoryview(bytearray(1 << 20)), np.zeros(sources[2].pool_rows * site.d_model, np.int16)
        other = np.ones_like(large)
        reading: dict[str, Callable[[], int]] = {
            "sequential, 1 MB buffer": lambda: sequential(files, small),
            "sequential, pool-sized buffer": lambda: sequential(files, large.view(np.uint8).data),
        }
        cold = reading | {
            f"shuffled, {n} threads": lambda source=source: shuffled(source, 1) for n, source in sources.items()
        }
        warm = reading | {
            f"shuffled, {n} threads": lambda source=source: shuffled(source, 3) for n, source in sources.items()
        }
        row_bytes = site.d_model * site.dtype.itemsize
        stayed: list[float] = []
        report("cold", compare(cold, arguments.rounds, lambda: stayed.append(drop(files))), row_bytes)
        print(f"  (still in the page cache before a turn: at most {max(stayed):.1%})")
        sequential(files, small)
        warm |= {"memcpy of a pool": lambda: memcpy(large, other)}
        report("warm", compare(warm, arguments.rounds, lambda: None), row_bytes)


if __name__ == "__main__":
    main()
