"""Faithfulness as a table and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from evals.faithfulness import ABLATIONS, MEAN, MODEL, Faithful
from evals.figures import ACCENT, QUIET, save
from evals.result import Estimate


def table(found: Mapping[str, Faithful], title: str) -> Table:
    """Substitutions, the ablations and the model as it is."""
    recovered = [f"{what} recovered ({ablation.split()[0]})" for what in ("loss", "change") for ablation in ABLATIONS]
    shown = Table("in the model's place", "loss", "accuracy", "change", *recovered)
    shown.title = f"Faithfulness, {escape(title)} (recovered: 0 is the ablation, 1 the model as it is)"
    for name, each in found.items():
        numbers = [*each.loss_recovered.values(), *each.change_recovered.values()]
        shown.add_row(escape(name), said(each.loss), said(each.accuracy), said(each.change), *map(said, numbers))
    return shown


def said(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    spread = "" if estimate.interval is None else f" ± {(estimate.interval[1] - estimate.interval[0]) / 2:.2g}"
    return f"{estimate.value:.3f}{spread}"


def draw(found: Mapping[str, Faithful], path: Path) -> Path:
    """What is recovered against mean ablation, with intervals."""

    def on(axes: Any) -> None:
        names = [name for name in found if name not in (MODEL, *ABLATIONS)][::-1]
        for side, (what, color) in enumerate((("loss", ACCENT), ("change", QUIET))):
            for at, name in enumerate(names):
                estimate = getattr(found[name], f"{what}_recovered")[MEAN]
                if estimate.value is None:
                    continue
                height = at + 0.15 - 0.3 * side
                axes.plot(estimate.interval or (estimate.value,) * 2, (height, height), color=color, lw=1.5)
                axes.plot(estimate.value, height, "o", color=color, ms=5, label=what if at == 0 else None)
        axes.axvline(0, color=QUIET, lw=1, ls="--")
        axes.axvline(1, color=QUIET, lw=1, ls=":")
        axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
        axes.set(xlabel="recovered (0: mean ablation, 1: the model as it is)", ylim=(-0.6, len(names) - 0.4))
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)

    return save(on, path)
