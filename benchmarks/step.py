"""One training step of a TopK SAE, beside the machine's limit and beside peers, in turns.

    python benchmarks/step.py [--shape 384 16384 32 2048] [--rounds 7] [--threads 2] [--only vsae limit saelens]
                              [--peer overcomplete=PYTHONPATH] [--peer dictionary_learning=PYTHONPATH]

limit       what no exact dense encoder can do without: one fp32 encoder product, torch.topk, one fused Adam over the parameters
vsae        forward, loss, backward, clipping, optimiser, projection, dead tracking: the loop's own step (selection auto | exact)
peers       their public classes with their own loop's step, AuxK inactive (no latent is dead after a few steps), float32

Every contestant lives in its own process and waits for its turn (A-B-A-B), one step at a time: a machine that slows down slows all of them. Medians,
ratios to the limit of the same rounds, and peak memory over what a process with the data and parameters has. `--only encode` measures encoding alone.
A package that only lives in a folder of its own is given by --peer NAME=FOLDER, which goes before the others on PYTHONPATH.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

WORKER = Path(__file__).with_name("step_workers.py")
NAMES = (
    "limit",
    "vsae",
    "vsae_exact",
    "vsae_ra",
    "sparsify",
    "saelens",
    "overcomplete",
    "overcomplete_ra",
    "dictionary_learning",
)


class Contestant:
    """A process that makes one step whenever it is asked."""

    def __init__(self, name: str, shape: list[int], threads: int, folder: str | None, encode: bool) -> None:
        path = os.pathsep.join(part for part in (folder, os.environ.get("PYTHONPATH")) if part)
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "PYTHONPATH": path}
        job = json.dumps({"name": name, "shape": shape, "encode": encode})
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.times: list[float] = []
        self.memory = 0.0
        ready = self.answer()
        self.problem = ready.get("problem")

    def answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {"problem": f"{self.name} ended without a word (exit {self.process.wait()})"}

    def turn(self, counted: bool) -> None:
        assert self.process.stdin is not None
        print("step", file=self.process.stdin, flush=True)
        found = self.answer()
        if "problem" in found:
            self.problem = found["problem"]
        elif counted:
            self.times.append(found["seconds"])
            self.memory = found["memory_mb"]


def measured(
    names: list[str], shape: list[int], rounds: int, threads: int, peers: dict[str, str], encode: bool
) -> list[Contestant]:
    contestants = [Contestant(name, shape, threads, peers.get(name), encode) for name in names]
    for number in range(rounds + 2):  # two rounds to warm up
        for each in contestants:
            if each.problem is None:
                each.turn(counted=number >= 2)
    for each in contestants:
        each.process.kill()
    return contestants


def table(contestants: list[Contestant], shape: list[int], encode: bool) -> Table:
    d, n, k, batch = shape
    shown = Table(title=f"{'encode' if encode else 'training step'}: d={d} n={n} k={k} batch={batch}")
    for column in ("contestant", "median ms", "spread", "x limit", "x vsae", "memory MB"):
        shown.add_column(column, justify="right")
    medians = {each.name: 1e3 * statistics.median(each.times) for each in contestants if each.times}
    for each in contestants:
        if each.name not in medians:
            shown.add_row(each.name, "-", str(each.problem)[:60], "", "", "")
            continue
        ms = medians[each.name]
        spread = f"{1e3 * min(each.times):.0f} to {1e3 * max(each.times):.0f}"
        ratios = [f"{ms / medians[base]:.2f}" if base in medians else "-" for base in ("limit", "vsae")]
        shown.add_row(each.name, f"{ms:.1f}", spread, *ratios, f"{each.memory:.0f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=[384, 16384, 32, 2048], metavar=("D", "N", "K", "BATCH"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=[name for name in NAMES if not name.endswith("_ra")]
    )
    parser.add_argument("--encode", action="store_true", help="encoding alone")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER", help="where a peer is installed")
    given = parser.parse_args()
    peers = dict(each.split("=", 1) for each in given.peer)
    found = measured(given.only, given.shape, given.rounds, given.threads, peers, given.encode)
    Console(width=110).print(table(found, given.shape, given.encode))


if __name__ == "__main__":
    main()
