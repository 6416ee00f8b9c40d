"""Does a linear probe on codes carry over to shifted images better than one on raw features?

One multinomial logistic regression a representation, fitted on the labelled training images, its strength by cross-validation on them; accuracy on images of
the same classes that are in distribution and on those that are not. Images of classes that the training images lack are left out and counted.

    floor     accuracy of always saying the most frequent training class
    drop      accuracy in distribution - accuracy under shift
    more      accuracy of codes - accuracy of features, image by image

Intervals are 95 % bootstraps over images, those of a difference of two sets drawn apart. Not in a paper's own words: the one that claims better
generalisation (2508.11277) could not be read beyond its abstract, so the protocol is ours.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool
from scipy.sparse import csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

STRENGTHS = (0.01, 0.1, 1.0)
FOLDS = 3

Rows: TypeAlias = csr_array | np.ndarray
Labels: TypeAlias = Sequence[str | None]


@dataclass(frozen=True)
class Probed:
    """One representation on every set whose labels are known."""

    name: str
    run: str | None
    strength: float
    accuracy: dict[str, Estimate]
    """Set -> share of its images whose class is told; the set in distribution comes first."""
    drop: dict[str, Estimate]
    more: dict[str, Estimate]
    """Of codes; empty for features."""
    n: dict[str, int]
    unknown: dict[str, int]
    """Images left out, for their class is not among the training images or not known."""


def probed(
    train: tuple[Rows, Labels],
    sets: Mapping[str, tuple[Rows, Labels]],
    name: str,
    run: str | None = None,
    beside: Mapping[str, Bool[np.ndarray, "_"]] | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[Probed, dict[str, Bool[np.ndarray, "_"]]] | None:
    """(what a probe on these rows does, which images of each set it gets right); `beside`: the same of another representation.

    The first of `sets` is in distribution; those without an image of a training class are left out. None where nothing can be probed: fewer than two
    training classes with FOLDS images, no labels in distribution.
    """
    x, y = train
    known = np.array([label is not None for label in y], bool)
    names, counts = np.unique([label for label in y if label is not None], return_counts=True)
    kept = set(names[counts >= FOLDS].tolist())
    known &= np.array([label in kept for label in y], bool)
    rows = {at: np.flatnonzero([label in kept for label in labels]) for at, (_, labels) in sets.items()}
    first = next(iter(sets), None)
    if len(kept) < 2 or first is None or not len(rows[first]):
        return None
    answers = np.array([str(label) for label in y])
    model, strength = fitted(sub(x, np.flatnonzero(known)), answers[known], seed)
    most = max(sorted(kept), key=lambda label: int((answers[known] == label).sum()))
    right, accuracy, shares, n, unknown = {}, {}, {}, {}, {}
    for at, (z, labels) in sets.items():
        if not len(rows[at]):
            continue
        truth = np.array([str(labels[row]) for row in rows[at].tolist()])
        right[at] = model.predict(sub(z, rows[at])) == truth
        # draws of a set depend on its size and the seed alone, so that two representations are resampled alike
        shares[at] = mean_of(right[at], resamples, seed)
        accuracy[at] = Estimate(float(right[at].mean()), float((truth == most).mean()), interval(shares[at]))
        n[at], unknown[at] = len(truth), len(labels) - len(truth)
    drop = {
        at: Estimate(
            float(right[first].mean() - right[at].mean()),
            0.0,
            interval(shares[first] - mean_of(right[at], resamples, seed + 1)),
        )
        for at in right
        if at != first
    }
    more = {
        at: Estimate(
            float(right[at].mean() - beside[at].mean()),
            0.0,
            interval(mean_of(right[at].astype(float) - beside[at], resamples, seed)),
        )
        for at in right
        if beside is not None
    }
    return Probed(name, run, strength, accuracy, drop, more, n, unknown), right


def fitted(x: Rows, y: np.ndarray, seed: int) -> tuple[Pipeline, float]:
    """The probe and its C. Sparse rows are divided by each column's largest value, dense ones standardised."""
    scaler = StandardScaler() if isinstance(x, np.ndarray) else MaxAbsScaler()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    search = GridSearchCV(
        make_pipeline(scaler, LogisticRegression(max_iter=300)), {"logisticregression__C": STRENGTHS}, cv=folds
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(x, y)
    return search.best_estimator_, float(search.best_params_["logisticregression__C"])


def sub(x: Rows, rows: np.ndarray) -> Rows:
    """Some rows; sparse ones with the 32-bit indices that scikit-learn asks for."""
    found = x[rows]
    if not isinstance(found, np.ndarray):
        found.indices, found.indptr = found.indices.astype(np.int32), found.indptr.astype(np.int32)
    return found


def mean_of(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The mean of each bootstrap resample."""
    return draws(len(values), resamples, seed) @ values.astype(np.float64) / len(values)


def interval(values: np.ndarray) -> tuple[float, float] | None:
    return percentiles(values) if len(values) > 1 else None
