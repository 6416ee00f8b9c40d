"""The probes of `evals.probing`: each is fitted to rows and what is said of them, and chooses its settings by AUC on a quarter of them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from scipy.sparse import csr_array
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from evals.detection import measures
from evals.pooling import Scores

STRENGTHS = (1e-3, 1e-1, 1e1)
COMPONENTS = (4, 16, 64)
NEIGHBOURS = (1, 5, 25)
DEPTHS: tuple[dict[str, int], ...] = ({"max_depth": 2}, {"max_depth": 6})
DECAYS: tuple[dict[str, float], ...] = ({"alpha": 1e-4}, {"alpha": 1e-1})
LATENTS = "latents"


@dataclass(frozen=True)
class Labels:
    """Codes and activations of the same samples, with what is true of each."""

    codes: Scores
    dense: Float[np.ndarray, "samples d"]
    truth: Bool[np.ndarray, "samples attributes"]
    samples: Int64[np.ndarray, "samples"]


@dataclass
class Column:
    """Scores of the test samples under one method, and its AUC on the validation quarter."""

    test: Float[np.ndarray, "samples"]
    validation: float
    settings: dict[str, float | int] = field(default_factory=dict)


def methods(
    train: Labels,
    rows: Int64[np.ndarray, "kept"],
    said: Bool[np.ndarray, "kept"],
    test: Labels,
    k: Sequence[int],
    rng: np.random.Generator,
    nonlinear: bool = False,
) -> dict[str, Column]:
    """Every method fitted to these rows. Choices are made on a quarter of them, drawn from both classes; then all are fitted to.

    nonlinear: boosted trees and an MLP, too.
    """
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
    if nonlinear:
        found["trees"] = with_settings(trees, DEPTHS, dense, split, rows, said, test.dense)
        found["MLP"] = with_settings(mlp, DECAYS, dense, split, rows, said, test.dense)
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


class QuietMLP(MLPClassifier):
    """As `Quiet`."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "QuietMLP":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().fit(X, y)


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


def with_settings(
    build: Callable[..., Any],
    settings: Sequence[Mapping[str, Any]],
    dense: np.ndarray,
    split: tuple,
    rows: np.ndarray,
    said: np.ndarray,
    tested: np.ndarray,
) -> Column:
    (inner, y), (held, y_held) = split
    tried = [
        (area(build(**each).fit(dense[inner], y).predict_proba(dense[held])[:, 1], y_held), each) for each in settings
    ]
    best, chosen = max(tried, key=lambda each: each[0])
    return Column(build(**chosen).fit(dense[rows], said).predict_proba(tested)[:, 1], best, dict(chosen))


def trees(max_depth: int) -> HistGradientBoostingClassifier:
    """Leaves of five samples, so that the scarce regime can split at all."""
    return HistGradientBoostingClassifier(
        max_iter=50, max_depth=max_depth, min_samples_leaf=5, early_stopping=False, random_state=0
    )


def mlp(alpha: float) -> Pipeline:
    return make_pipeline(StandardScaler(), QuietMLP((64,), alpha=alpha, max_iter=100, random_state=0))


def neighbours(
    known: Float[np.ndarray, "rows d"], asked: Float[np.ndarray, "asked d"]
) -> Int64[np.ndarray, "asked neighbours"]:
    """By cosine, nearest first."""
    most = min(max(NEIGHBOURS), len(known))
    return NearestNeighbors(n_neighbors=most, metric="cosine").fit(known).kneighbors(asked, return_distance=False)


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
