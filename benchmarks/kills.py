"""Twenty kills: extract and train, each killed with SIGKILL at random moments and repeated, must leave the bytes of an uninterrupted one.

    python benchmarks/kills.py [--kills 20] [--seed 0]

A job that ends before its kill is compared and begun anew. Compared are all files of a store, and of a run its weights, run.json, cfg.json and
self-check; exit code 1 where a byte differs.
"""

import argparse
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vsae.files import sha256

MODEL = shlex.split("--model.family vision --model.name vit_tiny_patch16_224 --model.no-pretrained --model.img-size 64")
RUN_FILES = ("sae_weights.safetensors", "run.json", "cfg.json", "self_check.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        photos(home / "photos", 1200)
        good = True
        for what, command, out, files in (("extract", extract, "store", None), ("train", train, "run", RUN_FILES)):
            began = time.monotonic()
            subprocess.run(command(home, home / out), check=True, capture_output=True)
            seconds = time.monotonic() - began
            print(f"{what}: {seconds:.1f} s without a kill", flush=True)
            expected, killed = hashes(home / out, files), home / f"{out}-killed"
            for number, ended in enumerate(endings(what, command(home, killed), options.kills, seconds, chance), 1):
                same = ended and hashes(killed, files) == expected
                print(f"{what}: completion {number}: {'the same bytes' if same else 'DIFFERENT'}", flush=True)
                shutil.rmtree(killed)
                good &= same
    raise SystemExit(0 if good else 1)


def endings(what: str, command: list[str], kills: int, seconds: float, chance: random.Random) -> Iterator[bool]:
    """Start and kill until all kills are spent, then let it end. Yields whenever the job ends, so that it can be compared and begun anew."""
    while kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        delay = chance.uniform(0.1, 1.0) * seconds
        try:
            yield process.wait(delay) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"{what}: killed after {delay:.1f} s, {kills - 1} kills left", flush=True)
            kills -= 1
    yield subprocess.run(command, capture_output=True).returncode == 0


def extract(home: Path, out: Path) -> list[str]:
    sites = ["--sites", "blocks.1", "blocks.3", "--batch-size", "16", "--rows-per-shard", "1024"]
    return [*vsae(), "extract", "--data", str(home / "photos"), *MODEL, *sites, "--out", str(out)]


def train(home: Path, out: Path) -> list[str]:
    budget = ["--training.tokens", "300000", "--training.batch-size", "512", "--training.checkpoint-every", "20"]
    recipe = ["--recipe", "ra_topk", "--sae.n-latents", "512", "--sae.k", "8", "--training.check-every", "10"]
    return [*vsae(), "train", "--store", str(home / "store"), "--site", "blocks.3", *recipe, *budget, "--out", str(out)]


def vsae() -> list[str]:
    return [sys.executable, "-m", "vsae.cli"]


def hashes(folder: Path, names: tuple[str, ...] | None) -> dict[str, str]:
    """Checksums of the files that count; of a store, all but what says where its images lie."""
    files = [folder / name for name in names] if names else [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files if not file.name.startswith(".")}


def photos(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number:04d}.png")


if __name__ == "__main__":
    main()
