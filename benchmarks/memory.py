"""Peak memory of training a TopK SAE, over the data and the parameters, beside peers.

    python benchmarks/memory.py [--shape 384 16384 32 2048] [--steps 6] [--only vsae saelens ...] [--peer NAME=FOLDER] [--peer NAME=PYTHON]

Every contestant of step.py runs alone in a process of its own, one after the other. Peak: the process's largest resident set after some steps, less what it
had when libraries were loaded and less the rows and the parameters themselves; so gradients, Adam's moments, activations and temporaries. Beside it the
parameters' bytes, and how many times as much it is. Nothing here is a time, so a busy machine does not matter. The bar: at most half of the leanest dense peer.
"""

import argparse

from rich.console import Console
from rich.table import Table
from step import NAMES, Contestant

DENSE = ("saelens", "overcomplete", "dictionary_learning")


def peaks(
    names: list[str], shape: list[int], steps: int, threads: int, peers: dict[str, str]
) -> dict[str, float | str]:
    """MB of each, or why there is none."""
    found: dict[str, float | str] = {}
    for name in names:
        each = Contestant(name, shape, threads, peers.get(name), encode=False)
        for _ in range(steps):
            if each.problem is None:
                each.turn(counted=True)
        each.process.kill()
        found[name] = each.memory if each.problem is None else str(each.problem)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=[384, 16384, 32, 2048], metavar=("D", "N", "K", "BATCH"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    alone = [name for name in NAMES if not name.endswith("_ra") and name != "limit"]
    parser.add_argument("--only", nargs="+", choices=NAMES, default=alone)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=WHERE", help="where a peer is installed")
    given = parser.parse_args()
    found = peaks(given.only, given.shape, given.steps, given.threads, dict(each.split("=", 1) for each in given.peer))
    d, n, k, batch = given.shape
    parameters = 2 * n * d * 4 / 2**20
    numbers = {name: peak for name, peak in found.items() if not isinstance(peak, str)}
    leanest = min((peak for name, peak in numbers.items() if name in DENSE), default=None)
    shown = Table(title=f"peak memory over data and parameters ({parameters:.0f} MB): d={d} n={n} k={k} batch={batch}")
    for column in ("contestant", "peak MB", "x parameters", "x leanest dense peer"):
        shown.add_column(column, justify="right")
    for name, peak in found.items():
        if isinstance(peak, str):
            shown.add_row(name, "-", peak[:60], "")
        else:
            ratio = f"{peak / leanest:.2f}" if leanest else "-"
            shown.add_row(name, f"{peak:.0f}", f"{peak / parameters:.2f}", ratio)
    Console(width=110).print(shown)


if __name__ == "__main__":
    main()
