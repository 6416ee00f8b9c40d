"""Attributes that several latents share, and parents whose latent is silent where a child's speaks.

Splitting   starting from the attribute's best latent, the candidate that explains most of what least squares leaves is added, as long as F1 on the
            selection split rises by more than RISE (SAEBench's rule for feature splitting), up to MOST. Reported: F1 and AP of the sum of these latents on
            the report split, and their gain over the best latent alone. 1 latent and gain 0: not split.
Absorption  for a parent attribute and a child of it: among the samples that have the child, and at which the child's latent fires, the share at which the
            parent's latent does not. Floor: that share among samples that have the parent but not this child. What is above the floor looks like
            absorption (2409.14507); where both attributes have the same latent there is none to be silent.

"Fires" is "above the threshold chosen on the selection split".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csc_array

from evals.pooling import Scores
from evals.ranking import best_threshold, column, resampled
from evals.reconstruction import divide, percentiles
from evals.recovery import Found, Labelled, Recovery, bootstrap
from evals.result import Estimate

RISE, MOST, POOL = 0.03, 8, 64
"""POOL: only so many candidates, those most correlated with the attribute, are considered for it."""


@dataclass(frozen=True)
class Split:
    """An attribute and the latents that stand for it together."""

    name: str
    latents: tuple[int, ...]
    f1: float
    ap: float
    f1_gain: float
    """Over the best latent alone, on the report split."""
    ap_gain: float


@dataclass(frozen=True)
class Absorption:
    """A parent's latent where a child's fires."""

    parent: str
    child: str
    missed: Estimate
    """Share of the child's samples at which the parent's latent is silent; floor: of the parent's other samples."""
    excess: Estimate
    """missed - its floor."""
    n: int
    """Samples that have the child, and at which its latent fires."""
    same_latent: bool


def splitting(recovery: Recovery, selection: Labelled, report: Labelled, names: Sequence[str]) -> tuple[Split, ...]:
    """Every attribute's latents, as the module's docstring says."""
    place, found = {name: at for at, name in enumerate(names)}, []
    kept = [place[each.name] for each in recovery.attributes]
    correlated = np.abs(correlations(selection.scores, selection.truth[:, kept]))
    for row, each in enumerate(recovery.attributes):
        best = np.argsort(-correlated[row], kind="stable")[:POOL]
        candidates = np.r_[each.latent, best[best != each.latent]].astype(np.int64)
        found.append(split_of(each, candidates, selection, report, place[each.name]))
    return tuple(found)


def split_of(
    found: Found, candidates: Int64[np.ndarray, "pool"], selection: Labelled, report: Labelled, attribute: int
) -> Split:
    """Add candidates (the first is in) while F1 on the selection split rises."""
    has = selection.has(attribute)
    x, y = columns(selection.scores, candidates), has - has.mean()
    chosen, (threshold, f1) = [0], best_threshold(x[:, 0], has)
    weights: Float[np.ndarray, "chosen"] = np.ones(1)
    shift, scale = x.mean(0), np.maximum(x.std(0), 1e-12)
    while len(chosen) < min(MOST, len(candidates)):
        used = x[:, chosen] - shift[chosen]
        left = y - used @ np.linalg.lstsq(used, y, rcond=None)[0]
        gains = np.abs(left @ x - left.sum() * shift) / scale
        gains[chosen] = -1
        trial = [*chosen, int(gains.argmax())]
        fitted = np.linalg.lstsq(x[:, trial] - shift[trial], y, rcond=None)[0]
        at, risen = best_threshold(x[:, trial] @ fitted, has)
        if risen <= f1 + RISE:
            break
        chosen, weights, threshold, f1 = trial, fitted, at, risen
    score = columns(report.scores, candidates[chosen]) @ weights
    groups, none = bootstrap(report.samples, 0, 0)
    measured = resampled(score, report.has(attribute), threshold, groups, none)
    alone_f1, alone_ap = found.f1.value or 0.0, found.ap.value or 0.0
    latents = tuple(candidates[chosen].tolist())
    if len(chosen) == 1:
        return Split(found.name, latents, alone_f1, alone_ap, 0.0, 0.0)
    return Split(found.name, latents, measured.f1, measured.ap, measured.f1 - alone_f1, measured.ap - alone_ap)


def absorption(
    recovery: Recovery,
    report: Labelled,
    names: Sequence[str],
    hierarchy: Mapping[str, Sequence[str]],
    *,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[Absorption, ...]:
    """Every (parent, child) of the hierarchy whose attributes were both measured."""
    found, place = {each.name: each for each in recovery.attributes}, {name: at for at, name in enumerate(names)}
    groups, weights = bootstrap(report.samples, resamples, seed)
    pairs = [(parent, child) for parent, children in hierarchy.items() for child in children]
    measured = []
    for parent, child in pairs:
        if parent not in found or child not in found:
            continue
        above, below = found[parent], found[child]
        silent = ~fires(report.scores, above)
        is_child = report.has(place[child])
        among = is_child & fires(report.scores, below)
        others = report.has(place[parent]) & ~is_child
        (missed, drawn), (floor, floor_drawn) = (rate(silent, rows, groups, weights) for rows in (among, others))
        excess = None if missed is None or floor is None else missed - floor
        measured.append(
            Absorption(
                parent,
                child,
                Estimate(missed, floor, percentiles(drawn)),
                Estimate(excess, 0.0, percentiles(drawn - floor_drawn)),
                int(among.sum()),
                above.latent == below.latent,
            )
        )
    return tuple(measured)


def fires(scores: Scores, found: Found) -> Bool[np.ndarray, "rows"]:
    return column(scores, found.latent) > found.threshold


def rate(
    event: Bool[np.ndarray, "rows"],
    among: Bool[np.ndarray, "rows"],
    groups: Int64[np.ndarray, "rows"],
    weights: Float[np.ndarray, "draws groups"],
) -> tuple[float | None, Float[np.ndarray, "draws"]]:
    """Share of the rows `among` at which the event holds, and its bootstrap draws; None where there is no such row."""
    width = weights.shape[1]
    hits = np.bincount(groups[event & among], minlength=width)
    all_rows = np.bincount(groups[among], minlength=width)
    value = float(hits.sum() / all_rows.sum()) if all_rows.any() else None
    return value, divide(weights @ hits.astype(np.float64), weights @ all_rows.astype(np.float64))


def correlations(scores: Scores, truth: csc_array) -> Float[np.ndarray, "attributes candidates"]:
    """Pearson's r of every candidate with every attribute; 0 for a constant one. Nothing dense of the scores' shape is made of sparse ones."""
    n, y = scores.shape[0], truth.astype(np.float64)
    if isinstance(scores, np.ndarray):
        first, second = scores.mean(0, dtype=np.float64), np.square(scores, dtype=np.float64).mean(0)
        together = y.T @ scores / n
    else:
        ones = np.ones(n)
        first, second = ones @ scores / n, ones @ scores.power(2).astype(np.float64) / n
        together = (y.T @ scores).toarray() / n
    p = np.asarray(y.sum(0)).ravel() / n
    spread = np.sqrt(np.outer(p * (1 - p), np.maximum(second - first**2, 0)))
    return np.divide(together - np.outer(p, first), spread, out=np.zeros_like(spread), where=spread > 1e-12)


def columns(scores: Scores, at: Int64[np.ndarray, "some"]) -> Float[np.ndarray, "rows some"]:
    """A few candidates as a dense matrix, in float64."""
    picked = scores[:, at]
    return (picked if isinstance(picked, np.ndarray) else picked.toarray()).astype(np.float64)
