"""Soft identifiability (Fel et al. 2025, 2502.12892, section 5): is there a latent and a threshold that tell whether an object is there?

    Acc_j = max over latents i and thresholds t of the share of samples at which (z_i > t) is y_j          mean over objects j

The paper takes 100 percentiles for thresholds and does not say where it selects [U in the spec]. Here every threshold is tried, latent and threshold are chosen
on one part of the samples, and the share is reported on another: chosen and reported on the same part, random codes rise above their floor.
Floor: a code that never changes, which says what most samples are: mean of max(p_j, 1 - p_j), 1 - 4 / c for collages of 4 among c objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from evals.ranking import blocks, column
from evals.reconstruction import percentiles
from evals.recovery import Labelled, bootstrap
from evals.result import Estimate


@dataclass(frozen=True)
class Identified:
    """One object."""

    name: str
    latent: int
    threshold: float
    accuracy: float
    floor: float
    selection_accuracy: float


@dataclass(frozen=True)
class Identifiability:
    """The module's docstring has the definitions."""

    objects: tuple[Identified, ...]
    accuracy: Estimate
    selection_accuracy: float
    """Where latents were chosen: what choosing flatters is above `accuracy`."""


def identify(
    selection: Labelled, report: Labelled, names: Sequence[str], *, resamples: int = 200, seed: int = 0
) -> Identifiability:
    """Choose on `selection`, measure on `report`. Raises ValueError when they share a sample, or an object is everywhere or nowhere."""
    if len(np.intersect1d(selection.samples, report.samples)):
        raise ValueError("some samples are both chosen on and reported on: split the samples.")
    truth = selection.truth.toarray().astype(bool)
    if len(still := np.flatnonzero(truth.all(0) | ~truth.any(0))):
        raise ValueError(f"'{names[still[0]]}' is true of all samples it is chosen on, or of none: leave it out.")
    best = np.full(truth.shape[1], -1.0)
    latents, thresholds = np.zeros(truth.shape[1], np.int64), np.zeros(truth.shape[1])
    start = 0
    for block in blocks(selection.scores):
        dense = block.toarray().astype(np.float64)
        for object_, (accuracy, latent, threshold) in enumerate(best_of(dense, truth)):
            if accuracy > best[object_]:
                best[object_], latents[object_], thresholds[object_] = accuracy, start + latent, threshold
        start += dense.shape[1]
    groups, weights = bootstrap(report.samples, resamples, seed)
    found, hits = [], []
    for object_, name in enumerate(names):
        has = report.has(object_)
        hit = (column(report.scores, int(latents[object_])) > thresholds[object_]) == has
        hits.append(hit)
        p = float(has.mean())
        latent, threshold = int(latents[object_]), float(thresholds[object_])
        found.append(Identified(name, latent, threshold, float(hit.mean()), max(p, 1 - p), float(best[object_])))
    of_row = np.mean(hits, 0)
    total = np.bincount(groups, of_row, weights.shape[1])
    drawn = weights @ total / np.maximum(weights @ np.bincount(groups, minlength=weights.shape[1]), 1)
    floor = float(np.mean([each.floor for each in found]))
    spread = percentiles(drawn) if weights.shape[1] > 1 and len(drawn) else None
    return Identifiability(tuple(found), Estimate(float(of_row.mean()), floor, spread), float(best.mean()))


def best_of(
    scores: Float[np.ndarray, "rows candidates"], truth: Bool[np.ndarray, "rows objects"]
) -> list[tuple[float, int, float]]:
    """(share of rows, candidate, threshold) of the best candidate for each object. Of equal ones the first, with its highest threshold."""
    n = len(scores)
    order = np.argsort(-scores, axis=0, kind="stable")
    values = np.take_along_axis(scores, order, 0)
    last = np.r_[
        values[1:] != values[:-1], np.ones((1, scores.shape[1]), bool)
    ]  # of equal values all or none are above a threshold
    found = []
    for has in truth.T:
        gained = np.cumsum(np.where(has[order], 1, -1), 0)
        gained = np.concatenate([np.zeros((1, scores.shape[1]), np.int64), np.where(last, gained, -n)])
        place = gained.argmax(0)
        best = gained[place, np.arange(scores.shape[1])]
        candidate = int(best.argmax())
        found.append(
            (
                (int(best[candidate]) + int((~has).sum())) / n,
                candidate,
                edge(values[:, candidate], int(place[candidate])),
            )
        )
    return found


def edge(values: Float[np.ndarray, "rows"], above: int | Int[np.ndarray, ""]) -> float:
    """A threshold that the first `above` of descending values are above, halfway to the next."""
    if above == len(values):
        return -np.inf
    return float(values[0]) if above == 0 else float((values[above - 1] + values[above]) / 2)
