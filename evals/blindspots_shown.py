"""The blindspots of `evals.blindspots_runs` as a table and as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from evals.blindspots import Null
from evals.blindspots_found import Audit, Audited, Named, by_change
from evals.figures import ACCENT, INK, QUIET, save

ROWS = 12


def table(found: Audit) -> Table:
    """The largest blindspots of every generator, a line each, below a line that sums the generator up."""
    shown = Table("latents", "real", "generated", "delta", "relative", "95 % interval", "q", "limit")
    low, high = found.null.delta_range
    shown.title = f"Blindspots (T = {found.settings['temperature']:g})"
    shown.caption = f"floor, two halves of the real images: {found.null.found:.1%} of the concepts found; delta {low:.3f} to {high:.3f}"
    if found.null.crosses:
        shown.caption += ", which reaches .1 or .9: at this temperature delta's thresholds say nothing"
    for each in found.generators:
        d = each.difference
        title = f"{each.name}: {each.blindspots.sum()} of {d.tested.sum()}"
        more = f"{each.low_level.sum()} low-level"
        shown.add_row(
            escape(title), more, "", f"skew {each.skew:.2f}", "", f"{len(each.nearest.candidates)} copies?", "", ""
        )
        for k in by_change(d, each.blindspots)[:ROWS]:
            latents = found.latents(k)
            more = f" +{len(latents) - 1}" if len(latents) > 1 else ""
            shown.add_row(
                f"  {latents[0]}{more}",
                f"{d.real[k]:.4f}",
                f"{d.generated[k]:.4f}",
                f"{d.delta[k]:.3f}",
                f"{d.relative[k]:+.2f}",
                f"{each.interval[0, k]:+.2f} to {each.interval[1, k]:+.2f}",
                f"{d.q[k]:.1e}",
                f"{d.limit[k]:.4f}",
            )
        shown.add_section()
    return shown


def names_table(named: Named) -> Table:
    """The names that change most, of every generator."""
    shown = Table("name", "concepts", "real", "generated", "relative", "95 % interval", "q")
    shown.title = "By name (all concepts of a name, added up)"
    shown.caption = f"floor, two halves of the real images: {named.floor:.1%} of the names found"
    for each in named.generators:
        d = each.difference
        shown.add_row(escape(f"{each.name}: {each.blindspots.sum()} of {d.tested.sum()}"))
        for k in by_change(d, each.blindspots)[:ROWS]:
            low, high = each.interval[:, k]
            numbers = f"{d.real[k]:.4f}", f"{d.generated[k]:.4f}", f"{d.relative[k]:+.2f}", f"{low:+.2f} to {high:+.2f}"
            shown.add_row(f"  {escape(named.names[k])}", f"{len(named.concepts[k])}", *numbers, f"{d.q[k]:.1e}")
        shown.add_section()
    return shown


def draw_audited(each: Audited, floor: Null, path: Path) -> Path:
    """Each concept by its energy in real images and its relative difference; blindspots stand out."""
    d = each.difference

    def on(axes: Any) -> None:
        others = d.live & ~each.blindspots & ~each.low_level
        groups = [
            (others, QUIET, "others"),
            (each.low_level, INK, "low-level"),
            (each.blindspots, ACCENT, "blindspots"),
        ]
        for which, color, name in groups:
            energy = np.maximum(d.real, d.generated)[which]
            axes.scatter(d.relative[which], energy, s=9, color=color, label=f"{name} ({which.sum():,})", lw=0)
        axes.axvline(0, color=QUIET, lw=1)
        axes.set(yscale="log", xlim=(-1.05, 1.05), ylabel="energy, the larger of both")
        axes.set_xlabel("relative difference: -1 gone, 1 new")
        axes.set_title(f"{each.name}; two halves of the real images: {floor.found:.1%} found", fontsize=9)
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
