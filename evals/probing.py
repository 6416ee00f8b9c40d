"""Can a few latents say what a dense probe says? Sparse probing beside the baselines it must beat, in four regimes (2502.16681, SAEBench; spec A6 and D).

    latents k       the k latents with the largest |mean(z | has) - mean(z | has not)| on the training samples, then a logistic regression
    neurons k       the same of the activation's own coordinates
    dense           a logistic regression on all coordinates of the activation
    PCA             a logistic regression on its first principal components, fitted on the training samples
    kNN             the share of positives among the nearest training samples, by cosine
    trees, MLP      where they are asked for, for they are slow: gradient-boosted trees, and one hidden layer of 64, on the activation. These stand for the
                    XGBoost and the MLP of 2502.16681; scikit-learn's HistGradientBoostingClassifier and MLPClassifier, and the few settings, are our choice

    normal          the training samples as they are
    scarce          so few of them, as many positives as negatives
    imbalanced      so few positives among them
    noisy           so large a share of their labels turned over

What a method may choose (C, components, neighbours, depth, decay) it chooses by AUC on a quarter of its training samples. Reported: AUC on test samples, which are the same
in all regimes and whose labels are never touched; floor 1/2; and the same after all labels were permuted. `toolkit`: the test AUC of the method with the best
AUC on that quarter, with and without latents among the methods: whether an SAE adds anything to what one already has.
Intervals are 95 % bootstraps over test samples of the mean over attributes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from evals.probes import LATENTS, Column, Labels, areas, methods
from evals.reconstruction import percentiles
from evals.recovery import bootstrap
from evals.result import Estimate

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
K = (1, 2, 5, 16)
REGIMES = ("normal", "scarce", "imbalanced", "noisy")


@dataclass(frozen=True)
class Regimes:
    """What is done to the training samples."""

    most: int = 4000
    """Samples in any regime."""
    scarce: int = 32
    imbalanced: float = 0.05
    """Share of positives."""
    noisy: float = 0.3
    """Share of labels turned over."""


@dataclass(frozen=True)
class Method:
    """Mean over attributes."""

    auc: Estimate
    """Floor 1/2."""
    shuffled: float
    """AUC in the normal regime after the labels of training and of test samples were permuted."""
    by_attribute: dict[str, float]


@dataclass(frozen=True)
class Probing:
    """By regime and method."""

    methods: dict[str, dict[str, Method]]
    toolkit: dict[str, Estimate]
    """By regime: AUC of the best method by validation where latents are among them, less that where they are not. Floor 0."""
    attributes: tuple[str, ...]
    left_out: tuple[str, ...]
    """Attributes that too few training or test samples have, or lack."""
    n_train: int
    n_test: int


def probe(
    train: Labels,
    test: Labels,
    names: Sequence[str],
    *,
    k: Sequence[int] = K,
    regimes: Regimes = Regimes(),
    min_positives: int = 10,
    nonlinear: bool = False,
    resamples: int = 200,
    seed: int = 0,
    track: Track = lambda items, what, n: items,
) -> Probing:
    """Every method in every regime. Raises ValueError when train and test share a sample, or no attribute has enough samples."""
    if shared := len(np.intersect1d(train.samples, test.samples)):
        raise ValueError(f"{shared:,} samples are both trained and tested on: split the samples.")
    counts = [np.minimum(part.truth.sum(0), (~part.truth).sum(0)) for part in (train, test)]
    kept = np.flatnonzero((counts[0] >= min_positives) & (counts[1] >= min_positives))
    if not len(kept):
        raise ValueError(
            f"no attribute is true of {min_positives} samples, and false of as many, in both training ({len(train.truth):,}) and "
            f"test ({len(test.truth):,}) samples: give more."
        )
    groups, weights = bootstrap(test.samples, resamples, seed)
    weights = np.concatenate([np.ones((1, weights.shape[1])), weights])[:, groups]
    found: dict[str, dict[str, list[np.ndarray]]] = {regime: {} for regime in REGIMES}
    gains: dict[str, list[np.ndarray]] = {regime: [] for regime in REGIMES}
    null: dict[str, list[float]] = {}
    for attribute in track(kept.tolist(), "probe", len(kept)):
        has, labels = train.truth[:, attribute], test.truth[:, attribute]
        rng = np.random.default_rng([seed, attribute])
        for regime in REGIMES:
            rows, said = altered(has, regime, regimes, rng)
            columns = methods(train, rows, said, test, k, rng, nonlinear)
            aucs = {name: areas(column.test, labels, weights) for name, column in columns.items()}
            for name, each in aucs.items():
                found[regime].setdefault(name, []).append(each)
            gains[regime].append(gain(columns, aucs))
        rows, said = altered(has, "normal", regimes, rng)
        mixed = rng.permutation(labels)
        for name, column in methods(train, rows, rng.permutation(said), test, k, rng, nonlinear).items():
            null.setdefault(name, []).append(float(areas(column.test, mixed, weights[:1])[0]))

    def mean(drawn: list[np.ndarray], floor: float) -> Estimate:
        values = np.mean(drawn, 0)
        return Estimate(
            float(values[0]), floor, percentiles(values[1:]) if len(test.samples) > 1 and resamples else None
        )

    chosen = tuple(names[at] for at in kept.tolist())
    return Probing(
        {
            regime: {
                name: Method(
                    mean(drawn, 0.5),
                    float(np.mean(null[name])),
                    {attribute: float(each[0]) for attribute, each in zip(chosen, drawn, strict=True)},
                )
                for name, drawn in each.items()
            }
            for regime, each in found.items()
        },
        {regime: mean(drawn, 0.0) for regime, drawn in gains.items()},
        chosen,
        tuple(name for name in names if name not in chosen),
        min(len(train.truth), regimes.most),
        len(test.truth),
    )


def altered(
    has: Bool[np.ndarray, "samples"], regime: str, regimes: Regimes, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, "kept"], Bool[np.ndarray, "kept"]]:
    """Which training samples a regime leaves, in random order, and what it says of them. At least two of each class where there are two."""
    order = rng.permutation(len(has)).astype(np.int64)
    order = order[: regimes.most]
    positive, negative = order[has[order]], order[~has[order]]
    if regime == "scarce":
        half = max(2, regimes.scarce // 2)
        order = rng.permutation(np.r_[positive[:half], negative[:half]])
    elif regime == "imbalanced":
        few = max(2, round(regimes.imbalanced / (1 - regimes.imbalanced) * len(negative)))
        order = rng.permutation(np.r_[positive[:few], negative])
    said = has[order].copy()
    if regime == "noisy":
        said ^= rng.random(len(said)) < regimes.noisy
    return order, said


def gain(columns: Mapping[str, Column], aucs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "draws"]:
    """Test AUC of the best method by validation AUC among all, less that among those without latents."""
    others = [name for name in columns if not name.startswith(LATENTS)]
    best, without = (
        max(some, key=lambda name: columns[name].validation)
        for some in (others + [n for n in columns if n not in others], others)
    )
    return aucs[best] - aucs[without]
