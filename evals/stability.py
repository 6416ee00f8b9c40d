"""Do two trainings find the same dictionary? Hungarian cosine between runs, above what untrained dictionaries of the same make share.

    S          mean over atoms of the cosine to the atom paired with it (Fel et al. 2025, eq. 2); mean over pairs of runs
    S0         the same between untrained dictionaries that were built the same way from different seeds: shared anchors and a common start already agree
    excess     (S - S0) / (1 - S0)        0: training added nothing to what the construction shares, 1: the same atoms
    unmatched  mean cosine of all pairs: near 1 where dictionaries have collapsed, and then S means nothing

Runs that share their start (S0 = 1, say because seeds do not reach the anchors) cannot be compared so, and are said to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evals.matching import match
from evals.result import Estimate
from vsae.activations import JoinedSource, Source
from vsae.activations.memory import TensorSource
from vsae.fitted import Once
from vsae.sae import SAE
from vsae.training.config import TrainConfig
from vsae.training.loop import Recipe, fitted
from vsae.training.normalise import normalisation

SHARED = 0.999
"""Above it, untrained dictionaries are the same one."""


@dataclass(frozen=True)
class Stability:
    """The module's docstring has the definitions."""

    stability: Estimate
    """S, with S0 as its floor and Student's interval over pairs of runs (pairs share runs, so it is a rough one)."""
    excess: float | None
    """None where S0 is 1."""
    unmatched: float
    shared_start: bool
    pairs: int


def stability(
    trained: Sequence[Float[Tensor, "n d_model"]], untrained: Sequence[Float[Tensor, "n d_model"]], signed: bool = False
) -> Stability:
    """Of the atoms of two runs or more, and of as many untrained dictionaries (`untrained`, with other seeds). Raises ValueError for fewer than two."""
    if len(trained) < 2 or len(untrained) < 2:
        raise ValueError(
            f"{len(trained)} trained and {len(untrained)} untrained dictionaries were given: stability compares two or more of each."
        )
    found = [match(a, b, signed) for a, b in combinations(trained, 2)]
    floor = float(np.mean([match(a, b, signed).matched for a, b in combinations(untrained, 2)]))
    value = float(np.mean([each.matched for each in found]))
    shared = floor > SHARED
    return Stability(
        stability=Estimate(value, floor, interval([each.matched for each in found])),
        excess=None if shared else (value - floor) / (1 - floor),
        unmatched=float(np.mean([each.unmatched for each in found])),
        shared_start=shared,
        pairs=len(found),
    )


def untrained(recipe: Recipe | Once, source: Source, config: TrainConfig) -> SAE:
    """The floor of what `recipe` learns on `source`, on raw activations: what a training starts from.

    A recipe that is fitted once starts from nothing; its floor is the same fit to rows of no structure beyond mean and covariance (`structureless`).
    """
    if isinstance(recipe, Once):
        return recipe.fit(structureless(source, config), config, lambda batches, total: iter(batches)).sae
    recipe, moments = fitted(recipe, source), source.moments()
    normalise = normalisation(config.normalise, moments, source.columns if isinstance(source, JoinedSource) else None)
    sample, mean = source.sample_rows(config.init_rows, config.seed), moments.mean.float()[None]
    return recipe.build(normalise(sample), normalise(mean)[0], config.seed).fuse(normalise.shift, normalise.scale)


def structureless(source: Source, config: TrainConfig) -> TensorSource:
    """Normal rows with the mean and the covariance of `config.init_rows` rows of the source, as many of them, drawn by `config.seed`."""
    rows = source.sample_rows(config.init_rows, config.seed).double()
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    values, vectors = torch.linalg.eigh(covariance)
    generator = torch.Generator().manual_seed(config.seed)
    white = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    return TensorSource((mean + (white * values.clamp_min(0).sqrt()) @ vectors.T).float())


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean; None for one value."""
    from scipy import stats

    if len(values) < 2:
        return None
    half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    middle = float(np.mean(values))
    return middle - half, middle + half
