"""Train recipes on planted dictionaries and score what they found; see evals.planted and evals.matching.

Each seed is another dictionary, other rows and another initialisation. Floors are the same scores of the same recipe before training, built from the
same rows; the unmatched cosine is what two atoms of the pair of dictionaries have in common at random.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Column, Table

import vsae
from evals.matching import ABOVE, Matching, match
from evals.planted import Planted
from evals.recovery_runs import over
from evals.result import Estimate, Result, write_result
from vsae.training.config import TrainConfig
from vsae.training.heldout import measure
from vsae.training.loop import Recipe

CONFIG = TrainConfig(epochs=10, batch_size=512, lr=1e-3, tracker="none", device="cpu", eval_every=0)
VAL_ROWS = 8192
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Trial:
    """One seed."""

    seed: int
    trained: Matching
    untrained: Matching
    dead: float
    """Share of latents silent on VAL_ROWS rows that were not trained on."""
    nmse: float
    l0: float


@dataclass(frozen=True)
class Trials:
    """A recipe on a world: means over seeds, with Student's 95 % interval where there are several; floors are the untrained dictionary's."""

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
    recipe: Recipe,
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

    def over_trials(of: Callable[[Matching], float]) -> Estimate:
        untrained = float(np.mean([of(each.untrained) for each in trials]))
        return over(np.array([of(each.trained) for each in trials]), untrained)

    return Trials(
        name,
        dataclasses.asdict(recipe),
        world,
        over_trials(lambda each: each.matched),
        over_trials(lambda each: each.recovered),
        over_trials(lambda each: each.nearest),
        over_trials(lambda each: each.unmatched),
        over(np.array([each.dead for each in trials]), None),
        over(np.array([each.nmse for each in trials]), 1.0),
        over(np.array([each.l0 for each in trials]), None),
        trials,
    )


def trial(recipe: Recipe, world: Planted, out: Path, seed: int, rows: int, config: TrainConfig) -> Trial:
    """One training, and its scores."""
    source, val = world.source(rows, 0), world.source(VAL_ROWS, 1)
    sample = source.sample_rows(config.init_rows, seed)
    sample = sample * (world.d_model / sample.square().sum(1).mean()).sqrt()
    before = recipe.build(sample, sample.mean(0), seed)
    trained = vsae.train(source, recipe, out, dataclasses.replace(config, seed=seed), val, progress=False)
    found = measure(trained.sae, val.rows.split(config.batch_size), torch.device("cpu"))
    return Trial(
        seed,
        match(world.atoms, trained.sae.atoms, world.signed),
        match(world.atoms, before.atoms, world.signed),
        found.dead_share,
        found.nmse,
        found.l0,
    )


def suited(recipe: Recipe, world: Planted, width: float = 1.0) -> Recipe:
    """The recipe with as many latents as the world has features, times `width`, and as many active ones, where it has such fields."""
    wanted = {"n_latents": round(width * world.n_features), "k": max(1, round(world.active))}
    fields = {name: value for name, value in wanted.items() if name in recipe.__dataclass_fields__}
    return dataclasses.replace(recipe, **fields)


def compare(
    recipes: Mapping[str, Recipe],
    world: Planted,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    rows: int = 65_536,
    config: TrainConfig = CONFIG,
    track: Track = lambda items, what, n: items,
) -> list[Trials]:
    """Run every recipe, as it is given, on the same worlds; write `out`/result.json, whose headline is the first recipe's matched cosine."""
    found = [
        run(recipe, world, out / "runs", name=name, seeds=seeds, rows=rows, config=config)
        for name, recipe in track(list(recipes.items()), "train on planted features", len(recipes))
    ]
    write_result(out, to_result(found, seeds, rows, config))
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
    """One row a recipe: scores, with the untrained dictionary's in brackets."""
    shown = Table(
        Column("recipe", no_wrap=True), "matched cosine", f"recovered > {ABOVE}", "unmatched", "dead", "L0", "NMSE"
    )
    shown.title = "Planted dictionary (in brackets: before training)"

    def cell(estimate: Estimate) -> str:
        half = (estimate.interval[1] - estimate.interval[0]) / 2 if estimate.interval else None
        spread = f" ± {half:.3f}" if half is not None else ""
        return f"{estimate.value:.3f}{spread} ({estimate.floor:.3f})"

    for each in found:
        scores = (cell(each.matched), cell(each.recovered), cell(each.unmatched))
        shown.add_row(
            escape(each.name), *scores, f"{each.dead.value:.1%}", f"{each.l0.value:.1f}", f"{each.nmse.value:.3f}"
        )
    return shown
