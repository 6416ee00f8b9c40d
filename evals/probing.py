"""Can a few latents say what a dense probe says? Sparse probing beside the baselines it must beat, in four regimes (2502.16681, SAEBench; spec A6 and D).

    latents k       the k latents with the largest |mean(z | has) - mean(z | has not)| on the training samples, then a logistic regression
    neurons k       the same of the activation's own coordinates
    dense           a logistic regression on all coordinates of the activation
    PCA             a logistic regression on its first principal components, fitted on the training samples
    kNN             the share of positives among the nearest training samples, by cosine

    normal          the training samples as they are
    scarce          so few of them, as many positives as negatives
    imbalanced      so few positives among them
    noisy           so large a share of their labels turned over

What a method may choose (C, components, neighbours) it chooses by AUC on a quarter of its training samples. Reported: AUC on test samples, which are the same
in all regimes and whose labels are never touched; floor 1/2; and the same after all labels were permuted. `toolkit`: the test AUC of the method with the best
AUC on that quarter, with and without latents among the methods: whether an SAE adds anything to what one already has.
Intervals are 95 % bootstraps over test samples of the mean over attributes.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from scipy.sparse import csr_array
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from evals.detection import measures
from evals.pooling import Scores
from evals.reconstruction import percentiles
from evals.recovery import bootstrap
from evals.result import Estimate

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
K = (1, 2, 5, 16)
STRENGTHS = (1e-3, 1e-1, 1e1)
COMPONENTS = (4, 16, 64)
NEIGHBOURS = (1, 5, 25)
REGIMES = ("normal", "scarce", "imbalanced", "noisy")
LATENTS = "latents"


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
class Labels:
    """Codes and activations of the same samples, with what is true of each."""

    codes: Scores
    dense: Float[np.ndarray, "samples d"]
    truth: Bool[np.ndarray, "samples attributes"]
    samples: Int64[np.ndarray, "samples"]


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


@dataclass
class Column:
    """Scores of the test samples under one method, and its AUC on the validation quarter."""

    test: Float[np.ndarray, "samples"]
    validation: float
    settings: dict[str, float | int] = field(default_factory=dict)


def probe(
    train: Labels,
    test: Labels,
    names: Sequence[str],
    *,
    k: Sequence[int] = K,
    regimes: Regimes = Regimes(),
    min_positives: int = 10,
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
            columns = methods(train, rows, said, test, k, rng)
            aucs = {name: areas(column.test, labels, weights) for name, column in columns.items()}
            for name, each in aucs.items():
                found[regime].setdefault(name, []).append(each)
            gains[regime].append(gain(columns, aucs))
        rows, said = altered(has, "normal", regimes, rng)
        mixed = rng.permutation(labels)
        for name, column in methods(train, rows, rng.permutation(said), test, k, rng).items():
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


def methods(
    train: Labels,
    rows: Int64[np.ndarray, "kept"],
    said: Bool[np.ndarray, "kept"],
    test: Labels,
    k: Sequence[int],
    rng: np.random.Generator,
) -> dict[str, Column]:
    """Every method fitted to these rows. Choices are made on a quarter of them, drawn from both classes; then all are fitted to."""
    held = validation(said, rng)
    split = (rows[~held], said[~held]), (rows[held], said[held])
    codes, dense = train.codes, train.dense
    found = {}
    for name, features, tested in ((LATENTS, codes, test.codes), ("neurons", dense, test.dense)):
        order_inner, order = (ranked(features, *each)[: max(k)] for each in (split[0], (rows, said)))
        for size in k:
            if size > features.shape[1]:
                continue
            inner = [picked(features, each, order_inner[:size]) for each in (split[0][0], split[1][0])]
            best = strongest(inner[0], split[0][1], inner[1], split[1][1])
            fitted = logistic(best[1]).fit(picked(features, rows, order[:size]), said)
            all_test = np.arange(tested.shape[0])
            found[f"{name} {size}"] = Column(
                fitted.decision_function(picked(tested, all_test, order[:size])), best[0], {"C": best[1]}
            )
    best = strongest(dense[split[0][0]], split[0][1], dense[split[1][0]], split[1][1])
    found["dense"] = Column(
        logistic(best[1]).fit(dense[rows], said).decision_function(test.dense), best[0], {"C": best[1]}
    )
    found["PCA"] = with_pca(dense, split, rows, said, test.dense)
    found["kNN"] = with_neighbours(dense, split, rows, said, test.dense)
    return found


def validation(said: Bool[np.ndarray, "rows"], rng: np.random.Generator) -> Bool[np.ndarray, "rows"]:
    """A quarter of each class, at least one, but never all of it."""
    held = np.zeros(len(said), bool)
    for value in (False, True):
        mine = rng.permutation(np.flatnonzero(said == value))
        held[mine[: min(max(1, len(mine) // 4), len(mine) - 1)]] = True
    return held


def ranked(
    features: Scores, rows: Int[np.ndarray, "kept"], said: Bool[np.ndarray, "kept"]
) -> Int64[np.ndarray, "features"]:
    """Features by |mean of positives - mean of negatives|, largest first; of equal ones the first."""
    weights = np.where(said, 1 / max(said.sum(), 1), -1 / max((~said).sum(), 1))
    every = np.zeros(features.shape[0])
    every[rows] = weights
    difference = np.abs(np.asarray(features.T @ every)).ravel()
    return np.argsort(-difference, kind="stable").astype(np.int64)


def picked(
    features: Scores, rows: Int[np.ndarray, "rows"], columns: Int[np.ndarray, "columns"]
) -> Float[np.ndarray, "rows columns"]:
    some = features[:, columns]
    return (some if isinstance(some, np.ndarray) else some.toarray())[rows].astype(np.float64)


def logistic(C: float) -> Pipeline:
    return make_pipeline(StandardScaler(), Quiet(C=C, max_iter=300))


class Quiet(LogisticRegression):
    """A fit that stops early for separable data is good enough, and says so once, in this docstring."""

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> "Quiet":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().fit(X, y, sample_weight)


def strongest(
    x: Float[np.ndarray, "rows d"],
    y: Bool[np.ndarray, "rows"],
    x_held: Float[np.ndarray, "held d"],
    y_held: Bool[np.ndarray, "held"],
) -> tuple[float, float]:
    """(AUC, C) of the best strength on the held rows; of equal ones the smallest C."""
    return max(
        ((area(logistic(C).fit(x, y).decision_function(x_held), y_held), C) for C in STRENGTHS),
        key=lambda each: each[0],
    )


def with_pca(dense: np.ndarray, split: tuple, rows: np.ndarray, said: np.ndarray, tested: np.ndarray) -> Column:
    """Components are fitted on the rows the regression is fitted on."""
    (inner, y), (held, y_held) = split
    tried = []
    for size in sorted({min(size, dense.shape[1], len(inner)) for size in COMPONENTS}):
        pca = PCA(size, svd_solver="full").fit(dense[inner])
        tried.append((*strongest(pca.transform(dense[inner]), y, pca.transform(dense[held]), y_held), size))
    best, C, size = max(tried, key=lambda each: each[0])
    pca = PCA(size, svd_solver="full").fit(dense[rows])
    fitted = logistic(C).fit(pca.transform(dense[rows]), said)
    return Column(fitted.decision_function(pca.transform(tested)), best, {"C": C, "components": size})


def with_neighbours(dense: np.ndarray, split: tuple, rows: np.ndarray, said: np.ndarray, tested: np.ndarray) -> Column:
    (inner, y), (held, y_held) = split
    near = neighbours(dense[inner], dense[held])
    tried = [(area(y[near[:, :size]].mean(1), y_held), size) for size in NEIGHBOURS if size <= near.shape[1]]
    best, size = max(tried, key=lambda each: each[0])
    return Column(said[neighbours(dense[rows], tested)[:, :size]].mean(1), best, {"neighbours": size})


def neighbours(
    known: Float[np.ndarray, "rows d"], asked: Float[np.ndarray, "asked d"]
) -> Int64[np.ndarray, "asked neighbours"]:
    """By cosine, nearest first."""
    most = min(max(NEIGHBOURS), len(known))
    return NearestNeighbors(n_neighbors=most, metric="cosine").fit(known).kneighbors(asked, return_distance=False)


def gain(columns: Mapping[str, Column], aucs: Mapping[str, np.ndarray]) -> Float[np.ndarray, "draws"]:
    """Test AUC of the best method by validation AUC among all, less that among those without latents."""
    others = [name for name in columns if not name.startswith(LATENTS)]
    best, without = (
        max(some, key=lambda name: columns[name].validation)
        for some in (others + [n for n in columns if n not in others], others)
    )
    return aucs[best] - aucs[without]


def area(score: Float[np.ndarray, "rows"], has: Bool[np.ndarray, "rows"]) -> float:
    return float(areas(score, has, np.ones((1, len(has))))[0])


def areas(
    score: Float[np.ndarray, "rows"], has: Bool[np.ndarray, "rows"], weights: Float[np.ndarray, "draws rows"]
) -> Float[np.ndarray, "draws"]:
    """AUC of the rows, each as often as it was drawn; equal scores count half. 1/2 where a draw has one class only."""
    values, place = np.unique(score, return_inverse=True)
    shape = (len(has), len(values))
    sides = [
        weights @ csr_array((side.astype(float), (np.arange(len(has)), place)), shape=shape).toarray()
        for side in (~has, has)
    ]
    both = (sides[0].sum(1) > 0) & (sides[1].sum(1) > 0)
    found = np.full(len(weights), 0.5)
    if both.any():
        found[both] = measures(sides[0][both], sides[1][both])[:, 0]
    return found
