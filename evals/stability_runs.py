"""`vsae eval stability`: how alike the dictionaries of runs are, beside untrained and random ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from evals.figures import ACCENT, QUIET, save
from evals.geometry import random_atoms
from evals.matching import match
from evals.result import Result, write_result
from evals.stability import Stability, stability, untrained
from vsae.activations import Select, StoreSource, fingerprint
from vsae.activations.store import SiteReader
from vsae.recipes import FIXED, RECIPES
from vsae.run import Run
from vsae.sae import require
from vsae.training.config import TrainConfig

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class StableRuns:
    """Stability of runs, and what as many random directions would have."""

    found: Stability
    random: float
    """Hungarian cosine of two dictionaries of random directions."""
    cosines: tuple[float, ...]
    """Of the first two runs' paired atoms, ascending."""
    untrained: tuple[float, ...]
    """The same of two untrained ones."""


def stability_of(runs: Sequence[Run], site: SiteReader, out: Path, *, seed: int = 0) -> StableRuns:
    """Compare runs of one recipe on one site; write result.json and stability.png to `out`.

    Untrained dictionaries are built as each run's was, from the same store, each with a seed of its own, which draws its anchors and starting rows anew.
    Raises ValueError for fewer than two runs, and for runs of different recipes.
    """
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run was given: stability compares two or more, trained with other seeds.")
    for run in runs:
        if run.meta["config"] is None:
            raise ValueError(
                f"{run.path} comes from another library, which does not say how to start it anew: stability needs runs of vsae."
            )
        fingerprint.check(run.fingerprint, site.fingerprint)
        require(run.sae, linear_decoder=True, for_="stability")
        if run.meta["recipe"] != runs[0].meta["recipe"]:
            raise ValueError(
                f"{run.path} and {runs[0].path} are of different recipes: stability is between seeds of one."
            )
    seeds = [run.meta["config"]["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"the runs' seeds are {', '.join(map(str, seeds))}: train them with different ones (--training.seed)."
        )
    signed = runs[0].sae.capabilities.signed
    before = [untrained_atoms(run, site) for run in runs]
    trained = [run.sae.atoms.detach() for run in runs]
    n, d = trained[0].shape
    found = stability(trained, before, signed)
    random = match(random_atoms(n, d, seed), random_atoms(n, d, seed + 1), signed).matched
    pairs = [sorted(match(each[0], each[1], signed).cosines.tolist()) for each in (trained, before)]
    whole = StableRuns(found, random, tuple(pairs[0]), tuple(pairs[1]))
    write_result(
        out,
        Result(
            metric="stability: matched cosine between runs",
            value=found.stability.value,
            floor=found.stability.floor,
            interval=found.stability.interval,
            n={"runs": len(runs), "pairs": found.pairs, "latents": n},
            seeds={f"training, {run.path.name}": of for run, of in zip(runs, seeds, strict=True)}
            | {"random directions": seed},
            splits={},
            normalisation=runs[0].fingerprint["normalisation"]["mode"],
            token_kinds=list(runs[0].fingerprint["select"]["kinds"] or site.kind_names),
            fingerprint={"saes": [run.fingerprint for run in runs], "store": site.fingerprint},
            details=whole,
        ),
    )
    draw_stability(whole, out / "stability.png")
    return whole


def untrained_atoms(run: Run, site: SiteReader) -> Float[Tensor, "n d_model"]:
    """Atoms of `evals.stability.untrained`: of the run's recipe before the first step, in the units of x, built from this store with the run's seed.

    Raises ValueError for another recipe.
    """
    about, known = run.meta["recipe"], RECIPES | FIXED
    if about["name"] not in known:
        raise ValueError(
            f"{run.path} is of recipe {about['name']!r}, which is not built from one site's rows: stability needs one that is."
        )
    recipe_of = known[about["name"]]
    fields: dict[str, Any] = {
        name: tuple(of) if isinstance(of, list) else of
        for name, of in about["fields"].items()
        if name in recipe_of.__dataclass_fields__
    }
    part = (
        tuple(run.fingerprint["select"]["part"])
        if run.fingerprint["store"] == site.fingerprint["store"]
        else (0.0, 1.0)
    )
    source = StoreSource(site, Select(run.kinds, part, run.skip))
    return untrained(recipe_of(**fields), source, TrainConfig(**run.meta["config"])).atoms.detach()


def stability_table(found: StableRuns) -> Table:
    shown = Table("matched cosine", "untrained", "random directions", "excess", "unmatched mean", "pairs")
    each = found.found
    low_high = each.stability.interval
    spread = f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
    shown.add_row(
        f"{each.stability.value:.3f}{spread}",
        f"{each.stability.floor:.3f}",
        f"{found.random:.3f}",
        "-" if each.excess is None else f"{each.excess:.3f}",
        f"{each.unmatched:.3f}",
        str(each.pairs),
    )
    shown.title = "Stability across seeds"
    if each.shared_start:
        shown.caption = (
            "These runs share their start: untrained, they are the same dictionary already, so the number says nothing."
        )
    return shown


def draw_stability(found: StableRuns, path: Path) -> Path:
    def on(axes: Any) -> None:
        for name, values, color in (("trained", found.cosines, ACCENT), ("untrained", found.untrained, QUIET)):
            axes.plot([at / max(len(values) - 1, 1) for at in range(len(values))], values, color=color, label=name)
        axes.axhline(found.random, color=QUIET, lw=1, ls="--")
        axes.text(0.01, found.random, "random directions, mean", color=QUIET, va="bottom", fontsize=8)
        axes.set(xlabel="share of atoms", ylabel="cosine to the atom paired with it", ylim=(None, 1.02))
        axes.legend(frameon=False)

    return save(on, path)
