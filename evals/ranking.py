"""How well a score ranks what has an attribute above what has not: AP and F1 that know ties, for every latent and attribute at once.

With the distinct values of a score in descending order, N_g the number of rows at or above value g and T_g how many of them have the attribute:

    AP = sum_g (T_g - T_{g-1}) / P * T_g / N_g          P rows have the attribute; all rows of a value come at once, in no order
    F1(g) = 2 T_g / (N_g + P)                           what is at or above value g is called positive

A constant score has AP = P / rows, the prevalence, exactly, and so has a dead latent. The zeros of a sparse score are one value that is never written down.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from scipy.sparse import csc_array, csr_array

from evals.pooling import Scores

BLOCK_ENTRIES = 8_000_000
"""Written entries ranked at a time: what bounds memory, besides the [attributes, candidates] result."""


@dataclass(frozen=True)
class Ranked:
    """The written entries of some columns, each column's in descending order of value."""

    rows: Int64[np.ndarray, "entries"]
    columns: Int64[np.ndarray, "entries"]
    at_or_above: Int64[np.ndarray, "entries"]
    """N_g of the entry's value."""
    negative: Bool[np.ndarray, "entries"]
    not_negative: Int64[np.ndarray, "columns"]
    """N_g of value 0."""


def average_precisions(scores: Scores, truth: csc_array) -> Float[np.ndarray, "attributes candidates"]:
    """AP of every candidate for every attribute; NaN for an attribute that no row has.

    scores: [rows, candidates], sparse or dense; truth: [rows, attributes], sparse. Costs entries * attributes, and memory for a block of entries.
    """
    attributes, found = truth.shape[1], []
    positives = [truth.indices[truth.indptr[a] : truth.indptr[a + 1]] for a in range(attributes)]
    for block in blocks(scores):
        ranked = rank(block)
        found.append(np.stack([one_attribute(ranked, rows, scores.shape[0]) for rows in positives]))
    return np.concatenate(found, 1)


def blocks(scores: Scores) -> Iterator[csc_array]:
    """The columns, so many at a time that few entries are written. Zeros are not."""
    if isinstance(scores, np.ndarray):
        width = max(1, BLOCK_ENTRIES // max(1, len(scores)))
        for start in range(0, scores.shape[1], width):
            yield csc_array(scores[:, start : start + width])
        return
    edges = [0]
    while edges[-1] < scores.shape[1]:
        reach = np.searchsorted(scores.indptr, scores.indptr[edges[-1]] + BLOCK_ENTRIES, "right") - 1
        edges.append(min(max(int(reach), edges[-1] + 1), scores.shape[1]))
    for start, stop in pairwise(edges):
        block = scores[:, start:stop].copy()
        block.sum_duplicates()
        block.eliminate_zeros()
        yield block


def rank(block: csc_array) -> Ranked:
    """Sort each column and count, for each entry, the rows at or above its value."""
    n, sizes = block.shape[0], np.diff(block.indptr).astype(np.int64)
    columns = np.repeat(np.arange(block.shape[1]), sizes)
    order = np.lexsort((-block.data, columns))
    values, rows = block.data[order], block.indices[order].astype(np.int64)
    place = np.arange(1, len(order) + 1) - np.repeat(block.indptr[:-1].astype(np.int64), sizes)
    place = last_of_run(place, columns, values)
    negative = values < 0
    below = np.bincount(columns[negative], minlength=block.shape[1])
    return Ranked(rows, columns, place + np.where(negative, (n - sizes)[columns], 0), negative, n - below)


def one_attribute(ranked: Ranked, positives: Int[np.ndarray, "positives"], n_rows: int) -> Float[np.ndarray, "columns"]:
    """AP of each column for the attribute that the rows `positives` have."""
    width, p = len(ranked.not_negative), len(positives)
    if p == 0:
        return np.full(width, np.nan)
    has = np.zeros(n_rows, bool)
    has[positives] = True
    hit = np.flatnonzero(has[ranked.rows])
    columns, n_above, negative = ranked.columns[hit], ranked.at_or_above[hit], ranked.negative[hit]
    written = np.bincount(columns, minlength=width)
    zeros = p - written
    place = np.arange(1, len(hit) + 1) - np.repeat(np.cumsum(written) - written, written)
    above = last_of_run(place, columns, n_above) + np.where(negative, zeros[columns], 0)
    at_zero = p - np.bincount(columns[negative], minlength=width)
    total = np.bincount(columns, above / n_above, width) + zeros * at_zero / np.maximum(ranked.not_negative, 1)
    return total / p


def last_of_run(place: Int64[np.ndarray, "entries"], *keys: np.ndarray) -> Int64[np.ndarray, "entries"]:
    """`place` of the last of the neighbouring entries that are equal in all keys."""
    if not len(place):
        return place
    changes = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    ends = np.r_[np.flatnonzero(changes), len(place) - 1]
    return np.repeat(place[ends], np.diff(ends, prepend=-1))


def column(scores: Scores, at: int) -> Float[np.ndarray, "rows"]:
    """One candidate's score of every row, in float64."""
    if isinstance(scores, np.ndarray):
        return scores[:, at].astype(np.float64)
    return scores[:, [at]].toarray()[:, 0].astype(np.float64)


def best_threshold(score: Float[np.ndarray, "rows"], has: Bool[np.ndarray, "rows"]) -> tuple[float, float]:
    """(threshold, its F1): calling positive what is above it has the largest F1, and of equals the fewest positives.

    The threshold is halfway to the next lower value; minus infinity, when calling everything positive is best.
    """
    order = np.argsort(-score, kind="stable")
    values, true = score[order], np.cumsum(has[order])
    ends = np.r_[np.flatnonzero(values[1:] != values[:-1]), len(values) - 1]
    f1 = 2 * true[ends] / (ends + 1 + has.sum())
    best = int(f1.argmax())
    if best == len(ends) - 1:
        return -np.inf, float(f1[best])
    return float((values[ends[best]] + values[ends[best] + 1]) / 2), float(f1[best])


@dataclass(frozen=True)
class Resampled:
    """AP and F1 on the rows as they are, and on bootstrap resamples of their groups; NaN where no row has the attribute."""

    ap: float
    f1: float
    ap_draws: Float[np.ndarray, "draws"]
    f1_draws: Float[np.ndarray, "draws"]


def resampled(
    score: Float[np.ndarray, "rows"],
    has: Bool[np.ndarray, "rows"],
    threshold: float,
    groups: Int64[np.ndarray, "rows"],
    weights: Float[np.ndarray, "draws groups"],
) -> Resampled:
    """AP of the score and F1 of `score > threshold`, each row counting as often as its group was drawn."""
    every = np.concatenate([np.ones((1, weights.shape[1])), weights])
    _, run = np.unique(-score, return_inverse=True)
    shape = (int(run.max()) + 1, weights.shape[1])
    # rows of one value and group are one entry, so the many zeros of a sparse score cost nothing
    n = np.cumsum(csr_array((np.ones(len(run)), (run, groups)), shape=shape) @ every.T, 0)
    new = csr_array((has.astype(np.float64), (run, groups)), shape=shape) @ every.T
    t = np.cumsum(new, 0)
    said, width = score > threshold, weights.shape[1]
    hits = every @ np.bincount(groups[said & has], minlength=width)
    with np.errstate(invalid="ignore"):
        ap = (new * t / np.maximum(n, 1)).sum(0) / t[-1]
        f1 = np.where(t[-1] > 0, 2 * hits / (every @ np.bincount(groups[said], minlength=width) + t[-1]), np.nan)
    return Resampled(float(ap[0]), float(f1[0]), ap[1:], f1[1:])
