"""How well a score tells samples out of distribution from those in it. Larger scores mean further out; equal scores are in no order.

    AUROC       P(out > in) + P(out = in) / 2                                                floor 1/2
    AUPR out    AP where what is out is to be found, best first from above                   floor: share that is out
    AUPR in     AP where what is in is to be found, best first from below                    floor: share that is in
    FPR95       share of `out` with score <= t, the smallest score with 95 % of `in` <= t    floor 0.95: accept 95 % of anything

A constant score has AUROC 1/2, the floors of both AUPR, and FPR95 1. Intervals are 95 % percentile bootstraps over samples, `in` and `out` drawn apart.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import MAX_GROUPS

ACCEPTED = 0.95
ENTRIES = 4_000_000
"""Draws * distinct scores counted at a time: what bounds memory."""

MEASURES = ("auroc", "aupr_out", "aupr_in", "fpr95")


@dataclass(frozen=True)
class Detection:
    """One score on one pair of sets."""

    auroc: Estimate
    aupr_out: Estimate
    aupr_in: Estimate
    fpr95: Estimate
    n_in: int
    n_out: int
    drawn: Float[np.ndarray, "draws 4"] | None = None
    """MEASURES in each resample, for means over sets and paired differences; not written."""


def detection(
    score_in: Float[np.ndarray, "n_in"], score_out: Float[np.ndarray, "n_out"], resamples: int = 200, seed: int = 0
) -> Detection:
    """The four measures with intervals. Equal seeds draw the same `in`, so that scores and sets can be paired.

    Raises ValueError for an empty set and for scores that are NaN; infinity is a score like any other.
    """
    if not len(score_in) or not len(score_out):
        raise ValueError(
            f"detection needs samples in and out of distribution, but got {len(score_in)} and {len(score_out)}."
        )
    if np.isnan(score_in).any() or np.isnan(score_out).any():
        raise ValueError("the scores hold NaN: nothing can be told apart by them.")
    values, place = np.unique(np.r_[score_in, score_out], return_inverse=True)
    sides = [
        Counts(place[: len(score_in)], len(values), resamples, [seed, 0]),
        Counts(place[len(score_in) :], len(values), resamples, [seed, 1]),
    ]
    width = max(1, ENTRIES // len(values))
    found = np.concatenate(
        [
            measures(*(side(start, min(start + width, resamples + 1)) for side in sides))
            for start in range(0, resamples + 1, width)
        ]
    )
    share = len(score_out) / len(place)
    enough = resamples > 0 and min(len(score_in), len(score_out)) > 1
    estimates = [
        Estimate(float(point), floor, percentiles(found[1:, at]) if enough else None)
        for at, (point, floor) in enumerate(zip(found[0], (0.5, share, 1 - share, ACCEPTED), strict=True))
    ]
    auroc, aupr_out, aupr_in, fpr95 = estimates
    return Detection(auroc, aupr_out, aupr_in, fpr95, len(score_in), len(score_out), found[1:])


class Counts:
    """How often each distinct score occurs in the set as it is (draw 0) and in its resamples; in MAX_GROUPS groups where there are more samples."""

    def __init__(self, place: Int64[np.ndarray, "samples"], n_values: int, resamples: int, seed: list[int]) -> None:
        groups = min(len(place), MAX_GROUPS)
        self.place, self.n_values, self.group = place, n_values, np.arange(len(place)) % groups
        drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples)
        self.weights = np.concatenate([np.ones((1, groups)), drawn])

    def __call__(self, start: int, stop: int) -> Float[np.ndarray, "draws values"]:
        found = np.zeros((stop - start, self.n_values))
        for row, weights in enumerate(self.weights[start:stop]):
            found[row] = np.bincount(self.place, weights[self.group], self.n_values)
        return found


def measures(
    n_in: Float[np.ndarray, "draws values"], n_out: Float[np.ndarray, "draws values"]
) -> Float[np.ndarray, "draws 4"]:
    """MEASURES of samples counted by score, scores ascending."""
    total_in, total_out = n_in.sum(1, keepdims=True), n_out.sum(1, keepdims=True)
    up_to_in, up_to_out = np.cumsum(n_in, 1), np.cumsum(n_out, 1)
    from_in, from_out = total_in - up_to_in + n_in, total_out - up_to_out + n_out
    auroc = (n_out * (up_to_in - n_in / 2)).sum(1) / (total_in * total_out)[:, 0]
    aupr_out = (n_out * from_out / np.maximum(from_in + from_out, 1)).sum(1) / total_out[:, 0]
    aupr_in = (n_in * up_to_in / np.maximum(up_to_in + up_to_out, 1)).sum(1) / total_in[:, 0]
    # counts are whole numbers, so a hair below 0.95 n is still 0.95 n
    at = (up_to_in >= ACCEPTED * total_in - 1e-9).argmax(1)
    fpr95 = up_to_out[np.arange(len(at)), at] / total_out[:, 0]
    return np.stack([auroc, aupr_out, aupr_in, fpr95], 1)


def mean_of(detections: list[Detection]) -> Detection:
    """Mean over sets that were measured against the same `in` with the same seed."""
    drawn = np.mean([each.drawn for each in detections if each.drawn is not None], axis=0)
    estimates = []
    for at, name in enumerate(MEASURES):
        of = [getattr(each, name) for each in detections]
        interval = percentiles(drawn[:, at]) if all(each.interval for each in of) else None
        estimates.append(
            Estimate(float(np.mean([each.value for each in of])), float(np.mean([each.floor for each in of])), interval)
        )
    auroc, aupr_out, aupr_in, fpr95 = estimates
    n_out = sum(each.n_out for each in detections)
    return Detection(auroc, aupr_out, aupr_in, fpr95, detections[0].n_in, n_out, drawn)
