"""Scores of what is out of distribution side by side: the comparison of `evals.ood_runs`, as a table and as a picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from evals.detection import MEASURES, Detection
from evals.figures import QUIET, save
from evals.result import Estimate
from evals.shift import Probed


@dataclass(frozen=True)
class Score:
    """One score of one run, or of the features, on every set that is out."""

    name: str
    run: str | None
    sets: dict[str, Detection]
    near: Detection | None
    far: Detection | None
    mean: Detection


@dataclass(frozen=True)
class Comparison:
    """Scores on codes of each run, then those on dense features."""

    scores: tuple[Score, ...]
    over_seeds: dict[str, Estimate]
    """Score -> mean over runs of the AUROC's mean over sets, with Student's 95 % interval over runs."""
    classes: str
    n_classes: int
    n_train: int
    probes: tuple[Probed, ...] = ()
    """Linear probes under shift, on features and then on codes of each run; none where there are no common labels."""


def table(found: Comparison) -> Table:
    """AUROC on each set, then the mean of each measure; scores on codes, over runs, then on features."""
    first = found.scores[0]
    groups = [name for name in ("near", "far") if first.near and first.far]
    shown = Table("score", *first.sets, *groups, "AUROC", "95 % interval", "AUPR out", "AUPR in", "FPR95")
    shown.title = f"Out of distribution: AUROC by set, then means over sets (classes: {escape(found.classes)})"
    for name in dict.fromkeys(score.name for score in found.scores):
        same = [score for score in found.scores if score.name == name]
        own = found.over_seeds.get(name) if len(same) > 1 else same[0].mean.auroc
        interval = own.interval if own else None
        shown.add_row(
            name,
            *(mean([score.sets[each].auroc for score in same]) for each in first.sets),
            *(mean([getattr(score, group).auroc for score in same]) for group in groups),
            mean([score.mean.auroc for score in same]),
            f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "-",
            *(mean([getattr(score.mean, measure) for score in same]) for measure in MEASURES[1:]),
        )
    floors = [f"{getattr(first.mean, measure).floor:.3f}" for measure in MEASURES]
    shown.add_row("floor", *["0.500"] * (len(first.sets) + len(groups)), floors[0], "", *floors[1:])
    return shown


def shift_table(found: Comparison) -> Table:
    """Accuracy of linear probes in distribution and under shift. `found.probes` is not empty."""
    first = found.probes[0]
    shown = Table("probe on", "C", *first.accuracy, *(f"drop, {name}" for name in first.drop))
    shown.title = "A linear probe, fitted in distribution: accuracy, and codes less features with its 95 % interval"

    def cell(value: Estimate, more: Estimate | None = None) -> str:
        beside = (
            f" ({more.value:+.3f}, {more.interval[0]:+.3f} to {more.interval[1]:+.3f})"
            if more and more.interval
            else ""
        )
        return f"{value.value:.3f}{beside}"

    for each in found.probes:
        cells = [cell(value, each.more.get(name)) for name, value in each.accuracy.items()]
        shown.add_row(escape(each.run or each.name), f"{each.strength:g}", *cells, *map(cell, each.drop.values()))
    floors = [f"{value.floor:.3f}" for value in first.accuracy.values()]
    shown.add_row("floor", "", *floors, *["0.000"] * len(first.drop))
    return shown


def mean(estimates: list[Estimate]) -> str:
    return f"{np.mean([estimate.value for estimate in estimates]):.3f}"


def draw_ood(found: Comparison, path: Path) -> Path:
    """AUROC by score, a mark a set, one row for the mean over runs."""

    def on(axes: Any) -> None:
        names = list(dict.fromkeys(score.name for score in found.scores))[::-1]
        for each in found.scores[0].sets:
            values = [np.mean([s.sets[each].auroc.value for s in found.scores if s.name == name]) for name in names]
            axes.plot(values, range(len(names)), "o", ms=5, label=each.replace("$", r"\$"))
        axes.axvline(0.5, color=QUIET, lw=1, ls="--")
        axes.set(xlabel="AUROC (0.5: knows nothing)", yticks=range(len(names)), yticklabels=names, xlim=(0, 1.02))
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
