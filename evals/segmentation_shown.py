"""The alignment of `evals.segmentation_runs` as tables and as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from evals.figures import ACCENT, INK, QUIET, save
from evals.propose import Audit
from evals.result import Estimate
from evals.segmentation_runs import Comparison

CLASSES = 30
"""Drawn at most, the most frequent ones."""


def table(found: Comparison) -> Table:
    """The run, then its baselines, then what knowing nothing scores."""
    shown = Table("method", "candidates", "L0", "mAP", "95 % interval", "run - it", "probe R", "coverage .3/.5/.7")
    for name in ("purity@16", "matched@16", "IoU"):
        shown.add_column(name)
    first = found.methods[0].found
    shown.title = f"One latent a class: {len(first.classes)} classes, {first.n_report:,} patches to report on"
    for each in found.methods:
        of = each.found
        shown.add_row(
            escape(each.name),
            f"{each.candidates:,}",
            f"{each.l0:.1f}",
            f"{of.mean_ap:.3f}",
            between(each.mean_ap),
            f"{each.more_ap.value:+.3f} ({between(each.more_ap)})" if each.more_ap else "",
            f"{of.probe_r:.3f}",
            "/".join(f"{share:.2f}" for share in of.coverage.values()),
            f"{of.purity_majority:.2f}",
            f"{of.precision_matched:.2f}",
            f"{of.mean_iou:.3f}",
        )
    p = f"{first.mean_ap_floor:.3f}"
    covered = "/".join(f"{share:.2f}" for share in first.coverage_floor.values())
    shown.add_row("floor", "", "", p, "", "", "0.000", covered, f"{first.purity_floor:.2f}", p[:-1], p)
    left = f"; left out, for a split lacks them: {', '.join(first.left_out)}" if first.left_out else ""
    shown.caption = escape(f"{found.without} images have no mask{left}")
    return shown


def audit_table(found: Audit) -> Table:
    """Yields beside random orders."""
    shown = Table("proposed", "grounded", "95 % interval", "random order", "95 % of random orders")
    shown.title = (
        f"Proposed by {len(found.known)} image labels, audited by the masks of {len(found.audited)} other classes "
        f"({found.share:.1%} of {found.live:,} latents are grounded)"
    )
    for each in found.yields:
        low, high = each.random
        grounded = each.grounded
        shown.add_row(
            str(each.budget), f"{grounded.value:.0f}", between(grounded, 0), f"{grounded.floor:.1f}", f"{low} to {high}"
        )
    return shown


def between(estimate: Estimate, digits: int = 3) -> str:
    return f"{estimate.interval[0]:.{digits}f} to {estimate.interval[1]:.{digits}f}" if estimate.interval else "-"


def draw_classes(found: Comparison, path: Path) -> Path:
    """AP by class, most frequent first: the run, the best of the baselines, and the prevalence."""

    def on(axes: Any) -> None:
        own = sorted(found.methods[0].found.classes, key=lambda each: -each.prevalence)[:CLASSES][::-1]
        others = [{each.name: each.ap for each in method.found.classes} for method in found.methods[1:]]
        best = [max((each[one.name] for each in others), default=np.nan) for one in own]
        rows = range(len(own))
        axes.plot([one.prevalence for one in own], rows, "|", color=QUIET, ms=9, label="prevalence (floor)")
        axes.plot(best, rows, "o", color=INK, ms=4, mfc="none", label="best baseline")
        axes.plot([one.ap for one in own], rows, "o", color=ACCENT, ms=5, label=found.methods[0].name)
        names = [one.name.replace("$", r"\$") for one in own]
        axes.set_yticks(list(rows), names, fontsize=max(4, 9 - len(own) // 6))
        axes.set(xlim=(-0.02, 1.02), xlabel="AP of the class's latent on the report split")
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
