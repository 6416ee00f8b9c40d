"""`vsae eval similarity`: ITDA runs of several models or layers on the same data, compared by the rows that became their atoms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from evals.figures import save
from evals.result import Estimate, Result, write_result
from evals.similarity import Similarity, similar
from vsae.run import Run
from vsae.tables import Origin, read_origins


def evaluate(
    first: Sequence[Run],
    second: Sequence[Run] | None,
    out: Path,
    *,
    prefixes: Sequence[int] = (),
    offered: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Similarity:
    """Compare runs with each other, or with those of `second`; write result.json and similarity.png to `out`.

    `prefixes`: tokens before the first one that models have in common, of each run of `first` and then `second`. `offered`: rows that became atoms or
    did not; what the runs say when left out. Where a run is another library's, samples are known by their number alone. Raises FileNotFoundError for runs whose atoms are no rows of data, ValueError for runs on other data.
    """
    runs = [*first, *(second or [])]
    if prefixes and len(prefixes) != len(runs):
        raise ValueError(f"{len(prefixes)} prefixes are given for {len(runs)} runs: give one for each, or none.")
    for run in runs:
        for part in ("data", "select"):
            ours, theirs = (each.fingerprint.get(part) for each in (runs[0], run))
            if ours is not None and theirs is not None and ours != theirs:
                raise ValueError(
                    f"{run.path} and {runs[0].path} saw other {'token kinds or samples' if part == 'select' else 'data'}: atoms of the same data are compared."
                )
    said = [run.meta["training"]["tokens"] for run in runs if run.meta["training"]]
    if offered is None and not said:
        raise ValueError(
            f"{runs[0].path} does not say how many rows it was grown on: give --rows, which chance depends on."
        )
    there = min(said) if offered is None else offered
    nameless = any("imported" in run.meta for run in runs)
    origins = [
        [Origin(str(s) if nameless else key, position - prefix, s) for key, position, s in read_origins(run.path)]
        for run, prefix in zip(runs, prefixes or [0] * len(runs), strict=True)
    ]
    parts = origins[: len(first)], origins[len(first) :]
    found = similar(parts[0], None if second is None else parts[1], there, resamples=resamples, seed=seed)
    write_result(
        out,
        Result(
            metric="mean Jaccard similarity of the rows that became atoms",
            value=found.mean.value,
            floor=found.mean.floor,
            interval=found.mean.interval,
            n={"runs": len(runs), "rows offered": there},
            seeds={"bootstrap": seed},
            splits={},
            normalisation=runs[0].fingerprint["normalisation"]["mode"],
            token_kinds=list(runs[0].fingerprint["select"]["kinds"] or ["all"]),
            fingerprint={"saes": [run.fingerprint for run in runs]},
            details=found,
        ),
    )
    names = [run.path.name for run in runs]
    draw(found, names[: len(first)], names[len(first) :] or names, out / "similarity.png")
    return found


def table(found: Similarity, first: Sequence[str], second: Sequence[str]) -> Table:
    """S of each pair, with its interval, and chance in brackets."""
    shown = Table("", *map(escape, second))
    for name, row in zip(first, found.table, strict=True):
        shown.add_row(escape(name), *map(cell, row))
    accuracy = found.accuracy
    told = "" if accuracy is None else f"; matched with their counterparts: {cell(accuracy, 2)}"
    shown.caption = f"in brackets: rows chosen at random. Mean {cell(found.mean)}{told}"
    return shown


def cell(estimate: Estimate, digits: int = 3) -> str:
    spread = f" ({estimate.interval[0]:.{digits}f} to {estimate.interval[1]:.{digits}f})" if estimate.interval else ""
    return f"{estimate.value:.{digits}f}{spread} [{estimate.floor:.{digits}f}]".replace("[", r"\[")


def draw(found: Similarity, first: Sequence[str], second: Sequence[str], path: Path) -> Path:
    """A map of the table."""

    def paint(axes: Any) -> None:
        values = np.array([[each.value for each in row] for row in found.table])
        axes.imshow(values, vmin=0, vmax=1, cmap="Oranges")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
        axes.set_xticks(range(len(second)), second, rotation=45, ha="right")
        axes.set_yticks(range(len(first)), first)
        axes.set_title(f"shared atoms (Jaccard); chance {found.mean.floor:.3f}")

    return save(paint, path)
