"""Pictures of results, as PNG files that appear whole. matplotlib is imported when a figure is drawn, not before."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals.baselines import Point
from evals.reconstruction import Reconstruction
from vsae.files import write_whole

INK, QUIET, ACCENT = "#1f2933", "#9aa5b1", "#c2410c"


def draw_frontier(points: Sequence[Point], path: Path, highlight: str | None = None) -> Path:
    """NMSE against L0, with intervals; `highlight` names the codec that the figure is about."""

    def draw(axes: Any) -> None:
        families = sorted({each.name.split(" ")[0] for each in points})
        for family in families:
            members = sorted((p for p in points if p.name.split(" ")[0] == family), key=lambda p: p.l0)
            color = ACCENT if highlight and highlight.split(" ")[0] == family else None
            l0, nmse = [max(p.l0, 0.5) for p in members], [p.nmse.value or 0.0 for p in members]
            bounds = [p.nmse.interval or (y, y) for p, y in zip(members, nmse, strict=True)]
            below = [max(0.0, y - low) for y, (low, _) in zip(nmse, bounds, strict=True)]
            errors = [below, [max(0.0, high - y) for y, (_, high) in zip(nmse, bounds, strict=True)]]
            axes.errorbar(l0, nmse, yerr=errors, marker="o", ms=5, lw=1.2, capsize=2, label=family, color=color)
        axes.axhline(1, color=QUIET, lw=1, ls="--")
        axes.text(0.01, 1, "mean predictor", color=QUIET, va="bottom", transform=axes.get_yaxis_transform(), fontsize=8)
        axes.set(xscale="log", xlabel="L0 (numbers used per token)", ylabel="NMSE")
        axes.set_ylim(0, max(1.08, axes.get_ylim()[1]))
        axes.legend(frameon=False)

    return save(draw, path)


def draw_density(measured: Reconstruction, path: Path) -> Path:
    """Latents by firing density, one line per token kind; silent latents are counted in the legend."""

    def draw(axes: Any) -> None:
        sets = measured.kinds if len(measured.kinds) > 1 else {}
        for name, measures in {"all tokens": measured.total, **sets}.items():
            shown = measures.density
            label = f"{name} ({shown.silent:,} of {measured.n_latents:,} silent)"
            axes.stairs(shown.counts, shown.log10_edges, label=label, lw=1.5, fill=False)
        axes.set(xlabel="log10 of the share of tokens a latent fires on", ylabel="latents")
        axes.legend(frameon=False, fontsize=8)

    return save(draw, path)


def save(draw: Callable[[Any], None], path: Path) -> Path:
    """Draw on the axes of a new figure and write it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    draw(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
    return path
