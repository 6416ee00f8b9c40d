"""Runs beside what they must beat: the comparison of `evals.recovery_runs`, as a table and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from evals.figures import QUIET, save
from evals.recovery import HEADLINE, Recovery
from evals.result import Estimate
from evals.splitting import Absorption, Split


@dataclass(frozen=True)
class Method:
    """A run or a baseline."""

    name: str
    recovery: Recovery
    shuffled: Recovery
    splitting: tuple[Split, ...]
    absorption: tuple[Absorption, ...]
    run: str | None = None
    """Directory of the run; None for a baseline."""
    recipe: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs first, then what they must beat."""

    methods: tuple[Method, ...]
    over_baselines: dict[str, dict[str, dict[str, Estimate]]]
    """run -> baseline -> paired difference of mean AP and of the share recovered."""
    over_seeds: dict[str, dict[str, Estimate]]
    """recipe -> mean over its runs, with Student's 95 % interval over them."""
    splits: dict[str, Any]
    unlabelled: int
    """Rows of the store that the table says nothing of; they are left out."""


def table(found: Comparison) -> Table:
    """Runs and baselines as a table; the last column is what luck reaches."""
    recovered = f"AP > {HEADLINE}"
    shown = Table("method", "candidates", "mean AP", "95 % interval", recovered, "mean F1", "split", "shuffled AP")
    shown.title = f"Attributes recovered by single latents ({len(found.methods[0].recovery.attributes)} attributes)"
    for each in found.methods:
        ap, low_high = each.recovery.mean_ap, each.recovery.mean_ap.interval
        split = np.mean([len(one.latents) > 1 for one in each.splitting])
        shown.add_row(
            escape(each.name),
            f"{each.recovery.candidates:,}",
            f"{ap.value:.3f}",
            f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "-",
            f"{each.recovery.share_ap[str(HEADLINE)].value:.0%}",
            f"{each.recovery.mean_f1.value:.3f}",
            f"{split:.0%}",
            f"{each.shuffled.mean_ap.value:.3f}",
        )
    first = found.methods[0].recovery
    floor = first.share_ap[str(HEADLINE)].floor
    shown.add_row("constant score", "", f"{first.mean_ap.floor:.3f}", "", f"{floor:.0%}", f"{first.mean_f1.floor:.3f}")
    return shown


def draw_recovery(methods: Sequence[Method], path: Path) -> Path:
    """Share of attributes above every AP, a curve a method: the higher the better."""

    def on(axes: Any) -> None:
        for each in methods:
            aps = np.sort([one.ap.value for one in each.recovery.attributes])[::-1]
            shares = np.arange(1, len(aps) + 1) / len(aps)
            style = {"lw": 2.0} if each.run else {"lw": 1.0, "ls": "--"}
            axes.step(np.r_[1, aps, 0], np.r_[0, shares, 1], where="post", label=each.name.replace("$", r"\$"), **style)
        prevalence = np.sort([one.ap.floor for one in methods[0].recovery.attributes])[::-1]
        shares = np.arange(1, len(prevalence) + 1) / len(prevalence)
        axes.step(
            np.r_[1, prevalence, 0], np.r_[0, shares, 1], where="post", color=QUIET, ls=":", label="constant score"
        )
        axes.set(
            xlabel="AP of the chosen latent, other samples",
            ylabel="share of attributes above",
            xlim=(0, 1),
            ylim=(0, 1.02),
        )
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
