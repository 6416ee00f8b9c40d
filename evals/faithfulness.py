"""How much of what a model does survives when reconstructions take the place of its activations.

A model answers the same questions as it is, and with a site's activations substituted: by an SAE's reconstruction, by a baseline's, by their mean, by zero.
Of an answer's units (a predicted token, an image) there are the loss, whether it is right, and the change, the distance from the model's own answer
(KL in nats, or the mean squared difference of pixels).

    loss recovered      (L_ablated - L_sub) / (L_ablated - L)      L: mean loss of the model as it is; SAEBench's ce_loss_score
    change recovered    (C_ablated - C_sub) / C_ablated            SAEBench's kl_div_score; the model as it is has C = 0

Floor of both is 0, the ablation itself; 1 is the model as it is. They are given against mean ablation, which is the harder floor as a rule, and against zero
ablation, which may lie outside of all the model has ever seen and then flatters. Where ablation does not hurt, there is nothing to recover: None.
Intervals are 95 % bootstraps over samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from evals.reconstruction import divide, percentiles
from evals.recovery import bootstrap
from evals.result import Estimate

MODEL, MEAN, ZERO = "model", "mean ablation", "zero ablation"
ABLATIONS = (MEAN, ZERO)


@dataclass(frozen=True)
class Outcome:
    """What a model made of some units under one substitution. NaN where a unit has no such number."""

    loss: Float[np.ndarray, "units"]
    right: Float[np.ndarray, "units"]
    """1 where the most probable answer is the true one, else 0."""
    change: Float[np.ndarray, "units"]


@dataclass(frozen=True)
class Faithful:
    """One substitution beside the ablations; the module's docstring has the definitions."""

    loss: Estimate
    accuracy: Estimate
    """Floor: with mean ablation."""
    change: Estimate
    loss_recovered: dict[str, Estimate]
    """By ablation."""
    change_recovered: dict[str, Estimate]
    units: int


def compare(
    outcomes: Mapping[str, Outcome],
    samples: Int64[np.ndarray, "units"],
    among: Bool[np.ndarray, "units"] | None = None,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Faithful]:
    """Every substitution, the ablations and the model as it is included, by name.

    outcomes: of the same units, in the same order; MODEL, MEAN and ZERO must be there. samples: which sample each unit is of. among: only these units.
    Raises ValueError where one of them is missing, the numbers of units differ, or no unit is left.
    """
    if missing := [name for name in (MODEL, *ABLATIONS) if name not in outcomes]:
        raise ValueError(f"there is no outcome of '{missing[0]}', which the others are measured against.")
    n = len(samples)
    if wrong := [name for name, each in outcomes.items() if not len(each.loss) == len(each.change) == n]:
        raise ValueError(f"the outcome of '{wrong[0]}' has other units than the {n:,} that were asked of the model.")
    among = np.ones(n, bool) if among is None else among
    if not among.any():
        raise ValueError("no unit is left to compare: ask the model about more samples.")
    groups, weights = bootstrap(samples[among], resamples, seed)
    weights = np.concatenate([np.ones((1, weights.shape[1])), weights])
    sums = {
        name: {what: means(getattr(each, what)[among], groups, weights) for what in FIELDS}
        for name, each in outcomes.items()
    }

    def estimate(draws: Float[np.ndarray, "draws"], floor: float | None = None) -> Estimate:
        value = None if np.isnan(draws[0]) else float(draws[0])
        spread = percentiles(draws[1:]) if value is not None and weights.shape[1] > 1 and len(draws) > 1 else None
        return Estimate(value, floor, spread)

    def recovered(name: str, what: str, ablation: str) -> Estimate:
        hurt = sums[ablation][what] - sums[MODEL][what]
        share = divide(sums[ablation][what] - sums[name][what], np.where(hurt > 0, hurt, 0))
        return estimate(share, 0.0)

    blind = estimate(sums[MEAN]["right"]).value
    return {
        name: Faithful(
            loss=estimate(sums[name]["loss"], estimate(sums[MEAN]["loss"]).value),
            accuracy=estimate(sums[name]["right"], blind),
            change=estimate(sums[name]["change"], estimate(sums[MEAN]["change"]).value),
            loss_recovered={ablation: recovered(name, "loss", ablation) for ablation in ABLATIONS},
            change_recovered={ablation: recovered(name, "change", ablation) for ablation in ABLATIONS},
            units=int(among.sum()),
        )
        for name in outcomes
    }


FIELDS = ("loss", "right", "change")


def means(
    values: Float[np.ndarray, "units"], groups: Int64[np.ndarray, "units"], weights: Float[np.ndarray, "draws groups"]
) -> Float[np.ndarray, "draws"]:
    """Mean over the units that have the number, each as often as its group was drawn. NaN where none has."""
    there, width = ~np.isnan(values), weights.shape[1]
    total = np.bincount(groups[there], values[there], width)
    return divide(weights @ total, weights @ np.bincount(groups[there], minlength=width).astype(np.float64))


def join(parts: list[Outcome]) -> Outcome:
    """Outcomes of one batch after the other."""
    return Outcome(*(np.concatenate([getattr(part, what) for part in parts]) for what in FIELDS))
