"""Train recipes on planted dictionaries and score what they found; see evals.planted and evals.matching.

Each seed is another dictionary, other rows and another initialisation. Floors are the same scores of the same recipe before training, built from the
same rows and measured on the same held-out ones (`evals.stability.untrained`; of a recipe that is fitted once, fitted to rows of the same mean and
covariance and no other structure); the unmatched cosine is what two atoms of the pair of dictionaries have in common at random. Codes that
are signed leave the sign of an atom open, so cosines of such a recipe, and of its floor, are absolute. A run that is there is not trained again.
"""

import copy
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import vsae
from evals.matching import ABOVE, Matching, match
from evals.planted import Planted
from evals.recovery_runs import over
from evals.result import Estimate, Result, write_result
from evals.stability import untrained
from vsae import recipes
from vsae.files import write_text
from vsae.fitted import Once
from vsae.recipes.fixed import ConvexNMF, Fixed
from vsae.recipes.nested import Matryoshka
from vsae.training.config import TrainConfig
from vsae.training.heldout import Heldout, measure
from vsae.training.loop import Recipe

CONFIG = TrainConfig(epochs=10, batch_size=512, lr=1e-3, tracker="none", device="cpu", eval_every=0)
VAL_ROWS = 8192
RECIPES: Mapping[str, Callable[..., Recipe | Once]] = (
    recipes.RECIPES
    | {"random_matryoshka": partial(Matryoshka, random_prefixes=10)}
    | {recipe.name: recipe for recipe in (recipes.TranscoderTopK, recipes.Crosscoder, recipes.VLSAE)}
    | recipes.FIXED
    | {"convex_nmf": partial(ConvexNMF, most_rows=1024)}
)
"""What is compared when nothing is named: the recipes of one site, those that read two that show the same features, and those that are fitted once
(convex NMF to fewer rows than its default, for time).

gradient_topk is not among them: a planted row has no model behind it, and any scalar made up for its gradient would decide what is found.
"""
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Trial:
    """One seed."""

    seed: int
    trained: Matching
    untrained: Matching
    heldout: Heldout
    """Error, sparsity and silence on VAL_ROWS rows that were not trained on."""
    heldout_untrained: Heldout


@dataclass(frozen=True)
class Trials:
    """A recipe on a world: means over seeds, with Student's 95 % interval where there are several; floors are those of the recipe before training."""

    name: str
    recipe: Mapping[str, Any]
    world: Planted
    matched: Estimate
    recovered: Estimate
    nearest: Estimate
    unmatched: Estimate
    dead: Estimate
    nmse: Estimate
    l0: Estimate
    trials: tuple[Trial, ...]


def run(
    recipe: Recipe | Once,
    world: Planted,
    out: Path,
    *,
    name: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    rows: int = 65_536,
    config: TrainConfig = CONFIG,
) -> Trials:
    """Train `recipe` once a seed, in `out`/NAME-SEED, and score it. `world.seed` and `config.seed` give way to the seeds."""
    name = name or recipe.name
    trials = tuple(
        trial(recipe, dataclasses.replace(world, seed=seed), out / f"{name}-{seed}", seed, rows, config)
        for seed in seeds
    )

    def over_trials(of: Callable[[Trial], tuple[float, float]]) -> Estimate:
        after, before = np.array([of(each) for each in trials]).T
        return over(after, float(before.mean()))

    return Trials(
        name,
        dataclasses.asdict(recipe),
        world,
        over_trials(lambda each: (each.trained.matched, each.untrained.matched)),
        over_trials(lambda each: (each.trained.recovered, each.untrained.recovered)),
        over_trials(lambda each: (each.trained.nearest, each.untrained.nearest)),
        over_trials(lambda each: (each.trained.unmatched, each.untrained.unmatched)),
        over_trials(lambda each: (each.heldout.dead_share, each.heldout_untrained.dead_share)),
        over_trials(lambda each: (each.heldout.nmse, each.heldout_untrained.nmse)),
        over_trials(lambda each: (each.heldout.l0, each.heldout_untrained.l0)),
        trials,
    )


def trial(recipe: Recipe | Once, world: Planted, out: Path, seed: int, rows: int, config: TrainConfig) -> Trial:
    """One training, and its scores. Recipes for joined rows get the world beside its twin, and the atoms of both, or of the one that theirs are of."""
    joined = "columns" in recipe.__dataclass_fields__
    source, val = ((world.joined if joined else world.source)(*draw) for draw in ((rows, 0), (VAL_ROWS, 1)))
    known = torch.cat([world.atoms, world.twin.atoms], 1) if joined else world.atoms
    config = dataclasses.replace(config, seed=seed)
    before = untrained(recipe, source, config)
    after = vsae.train(source, recipe, out, config, val, progress=False).sae
    signed = world.signed or after.capabilities.signed

    def coded(sae: vsae.SAE) -> Heldout:
        batches = val.batches(config.batch_size, 0, epochs=1)
        return measure(sae, (batch.values for batch in batches), torch.device("cpu"))

    found, floor = (match(known[:, -sae.atoms.shape[1] :], sae.atoms, signed) for sae in (after, before))
    return Trial(seed, found, floor, coded(after), coded(before))


def suited(recipe: Recipe | Once, world: Planted, width: float = 1.0) -> Recipe | Once:
    """The recipe with as many latents as the world has features, times `width`, and as many active ones, where it has such fields."""
    return sized(recipe, round(width * world.n_features), world.active, world.d_model)


def sized(recipe: Recipe | Once, n_latents: int, active: float | int, d_model: int) -> Recipe | Once:
    """The recipe with so many latents, and so many active ones a row where it can be told how many."""
    k = max(1, round(active))
    if isinstance(recipe, Fixed):
        return recipe.sized(n_latents, k, d_model)
    told = {"n_latents": n_latents, "k": k, "target_l0": float(active)}
    return dataclasses.replace(recipe, **{name: of for name, of in told.items() if name in recipe.__dataclass_fields__})


def compare(
    recipes: Mapping[str, Recipe | Once],
    world: Planted,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    rows: int = 65_536,
    config: TrainConfig = CONFIG,
    track: Track = lambda items, what, n: items,
) -> list[Trials]:
    """Run every recipe, as it is given, on the same worlds; write `out`/result.json, whose headline is the first recipe's matched cosine, and `out`/table.md."""
    found = [
        run(recipe, world, out / "runs", name=name, seeds=seeds, rows=rows, config=config)
        for name, recipe in track(list(recipes.items()), "train on planted features", len(recipes))
    ]
    write_result(out, to_result(found, seeds, rows, config))
    write_text(out / "table.md", markdown(table(found)))
    return found


def to_result(found: Sequence[Trials], seeds: Sequence[int], rows: int, config: TrainConfig) -> Result:
    first = found[0]
    return Result(
        metric=f"mean matched cosine, {first.name}",
        value=first.matched.value,
        floor=first.matched.floor,
        interval=first.matched.interval,
        n={"rows": rows, "held-out rows": VAL_ROWS, "features": first.world.n_features, "seeds": len(seeds)},
        seeds={f"world and training {seed}": seed for seed in seeds},
        splits={"fit": {"draw": 0, "rows": rows}, "report": {"draw": 1, "rows": VAL_ROWS}},
        normalisation=config.normalise,
        token_kinds=["patch"],
        fingerprint={"data": {"kind": "planted", **dataclasses.asdict(first.world)}},
        details={"recipes": list(found), "config": config, "recovered above": ABOVE},
    )


def table(found: Iterable[Trials]) -> Table:
    """One row a recipe: each score with half of its interval over seeds, and before training in brackets."""
    scores = {
        "matched cosine": "matched",
        f"recovered > {ABOVE}": "recovered",
        "unmatched": "unmatched",
        "dead": "dead",
        "L0": "l0",
        "NMSE": "nmse",
    }
    shown = Table(Column("recipe", no_wrap=True), *scores)
    shown.title = "Planted dictionary (± half of the 95 % interval over seeds; in brackets: before training)"
    for each in found:
        shown.add_row(escape(each.name), *(cell(getattr(each, score), score) for score in scores.values()))
    return shown


def cell(estimate: Estimate, score: str) -> str:
    digits = 1 if score == "l0" else 3
    half = (estimate.interval[1] - estimate.interval[0]) / 2 if estimate.interval else None
    spread = f" ± {half:.{digits}f}" if half is not None else ""
    return f"{estimate.value:.{digits}f}{spread} ({estimate.floor:.{digits}f})"


def markdown(table: Table) -> str:
    """The table as Markdown, without its title."""
    shown = copy.copy(table)
    shown.title, shown.box = None, box.MARKDOWN
    text = io.StringIO()
    Console(file=text, width=1000).print(shown)
    return "".join(f"{line.strip()}\n" for line in text.getvalue().splitlines() if line.strip())
