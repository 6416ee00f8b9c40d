"""One training step of a TopK SAE, beside the machine's limit and beside peers, in turns.

    python benchmarks/step.py [--shape 384 16384 32 2048] [--rounds 7] [--threads 2] [--only vsae limit saelens] [--encode]
                              [--peer overcomplete=FOLDER] [--peer dictionary_learning=PYTHON] [--json FILE]
    python benchmarks/step.py --grow growth.png [--only limit vsae saelens]      how time grows with n, d, k and batch, one at a time

limit       what no exact dense encoder can do without: one fp32 encoder product, torch.topk, one fused Adam over the parameters
vsae        forward, loss, backward, clipping, optimiser, projection, dead tracking: the loop's own step (selection auto | exact)
peers       their public classes with their own loop's step, AuxK inactive (no latent is dead after a few steps), float32

Every contestant lives in its own process and waits for its turn (A-B-A-B): a step that is not counted, for a run's steps follow each other, and two that
are, as one number. A machine that slows down slows all of them. Threads wait as OpenMP's defaults have it. Medians, ratios to the limit and to vsae of the same rounds, by the clock and by processor time (which other jobs on the machine disturb less), and peak memory
over what a process with the data and parameters has. `--encode` measures encoding alone. A peer that lives in a folder of its own is given by --peer NAME=FOLDER,
which goes before the others on PYTHONPATH; one in a virtual environment by its interpreter, --peer NAME=ENVIRONMENT/bin/python.
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
    """A process that makes a few steps whenever it is asked."""

    def __init__(self, name: str, shape: list[int], threads: int, folder: str | None, encode: bool) -> None:
        own = folder is not None and Path(folder).is_file()
        path = os.pathsep.join(part for part in (None if own else folder, os.environ.get("PYTHONPATH")) if part)
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        job = json.dumps({"name": name, "shape": shape, "encode": encode})
        self.name = name
        self.process = subprocess.Popen(
            [str(folder) if own else sys.executable, str(WORKER), job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.times: list[float] = []
        self.processor: list[float] = []
        self.memory = 0.0
        ready = self.answer()
        self.problem = ready.get("problem")

    def answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {"problem": f"{self.name} ended without a word (exit {self.process.wait()})"}

    def turn(self, counted: bool, steps: int = 2) -> None:
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        found = self.answer()
        if "problem" in found:
            self.problem = found["problem"]
        elif counted:
            self.times.append(found["seconds"])
            self.processor.append(found["processor"])
            self.memory = found["memory_mb"]


def measured(
    names: list[str], shape: list[int], rounds: int, threads: int, peers: dict[str, str], encode: bool, steps: int = 2
) -> list[Contestant]:
    contestants = [Contestant(name, shape, threads, peers.get(name), encode) for name in names]
    for number in range(rounds + 2):  # two rounds to warm up
        for each in contestants:
            if each.problem is None:
                each.turn(number >= 2, steps)
    for each in contestants:
        each.process.kill()
    return contestants


def table(contestants: list[Contestant], shape: list[int], encode: bool) -> Table:
    d, n, k, batch = shape
    shown = Table(title=f"{'encode' if encode else 'training step'}: d={d} n={n} k={k} batch={batch}")
    for column in (
        "contestant",
        "median ms",
        "spread",
        "x limit",
        "x vsae",
        "cpu ms",
        "x limit",
        "x vsae",
        "memory MB",
    ):
        shown.add_column(column, justify="right")
    medians, work = (
        {each.name: 1e3 * statistics.median(getattr(each, kind)) for each in contestants if each.times}
        for kind in ("times", "processor")
    )
    for each in contestants:
        if each.name not in medians:
            shown.add_row(each.name, "-", str(each.problem)[:60], *[""] * 6)
            continue
        ms = medians[each.name]
        spread = f"{1e3 * min(each.times):.0f} to {1e3 * max(each.times):.0f}"
        clock, processor = (
            [f"{found[each.name] / found[base]:.2f}" if base in found else "-" for base in ("limit", "vsae")]
            for found in (medians, work)
        )
        cpu = f"{work[each.name]:.1f}"
        shown.add_row(each.name, f"{ms:.1f}", spread, *clock, cpu, *processor, f"{each.memory:.0f}")
    return shown


def grow(names: list[str], shape: list[int], rounds: int, threads: int, peers: dict[str, str], encode: bool) -> dict:
    """Median times of every contestant where one of d, n, k and batch is halved and doubled twice, the others as given."""
    found: dict[str, list[dict]] = {}
    for at, axis in enumerate(("d", "n", "k", "batch")):
        for factor in (0.25, 0.5, 1, 2, 4):
            changed = [round(size * factor) if place == at else size for place, size in enumerate(shape)]
            for each in measured(names, changed, rounds, threads, peers, encode):
                if each.times:
                    clock, work = (1e3 * statistics.median(times) for times in (each.times, each.processor))
                    point = {axis: changed[at], "ms": clock, "cpu_ms": work, "memory_mb": each.memory}
                    found.setdefault(axis, []).append({"contestant": each.name} | point)
    return found


def plot(found: dict, path: Path, encode: bool) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (axis, points) in zip(figure.subplots(2, 2).flat, found.items(), strict=True):
        for name in dict.fromkeys(point["contestant"] for point in points):
            mine = [point for point in points if point["contestant"] == name]
            axes.plot([point[axis] for point in mine], [point["cpu_ms"] for point in mine], "o-", label=name)
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="processor ms a step")
        axes.legend(fontsize="small")
    figure.suptitle("encode" if encode else "training step")
    figure.savefig(path, dpi=130)


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
    parser.add_argument(
        "--steps",
        type=int,
        default=2,
        help="steps counted in a turn; more of them tell less of what a turn before left in caches",
    )
    parser.add_argument("--grow", type=Path, metavar="FILE.png", help="vary d, n, k and batch, and draw")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, too")
    given = parser.parse_args()
    peers = dict(each.split("=", 1) for each in given.peer)
    if given.grow:
        grown = grow(given.only, given.shape, given.rounds, given.threads, peers, given.encode)
        plot(grown, given.grow, given.encode)
        given.grow.with_suffix(".json").write_text(json.dumps(grown, indent=1))
        print(f"wrote {given.grow} and {given.grow.with_suffix('.json')}")
        return
    found = measured(given.only, given.shape, given.rounds, given.threads, peers, given.encode, given.steps)
    Console(width=120).print(table(found, given.shape, given.encode))
    if given.json:
        samples = {each.name: {"seconds": each.times, "processor": each.processor} for each in found}
        given.json.write_text(json.dumps({"shape": given.shape, "samples": samples}, indent=1))


if __name__ == "__main__":
    main()
