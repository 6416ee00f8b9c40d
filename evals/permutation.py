"""Permutation p-values for thousands of latents at once.

    T_j = sum_i w_i v_ij                                 two-sided: how often is |T*_j| >= |T_j|, w being reshuffled?
    paired      v = generated - real of the same pair    w = 1 / n                      reshuffled: random signs
    unpaired    v = both sets, one below the other       w = 1 / n_gen, -1 / n_real     reshuffled: permuted

Sequential (Besag and Clifford 1991): a latent is done at its ENOUGH-th exceedance, after L reshufflings, with p = ENOUGH / L; one that never gets there
has p = (1 + exceedances) / (1 + permutations). Both are p-values in the strict sense, and nearly all the work goes into the small ones.

Among m tests a lone change passes Benjamini-Hochberg at alpha only where p can be as small as alpha / m, which takes m / alpha permutations.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csc_array, vstack
from scipy.stats import false_discovery_control

ENOUGH = 20
BLOCK, ENTRIES = 1024, 16_000_000
"""Reshufflings at a time, and numbers in a dense block: what bounds memory."""
SLACK = 1e-9
"""Sums that differ by less than this share of sum |w v| are equal: they were added in another order."""

Reshuffle = Callable[[np.random.Generator, int], np.ndarray]


def paired(generated: csc_array, real: csc_array, permutations: int, seed: int = 0) -> Float[np.ndarray, "n_latents"]:
    """p of the sign-flip test; row i of both is of the same pair. Raises ValueError where they have not as many rows."""
    if generated.shape != real.shape:
        raise ValueError(f"{generated.shape[0]} and {real.shape[0]} rows are no pairs: compare them unpaired.")
    n = real.shape[0]

    def signs(rng: np.random.Generator, size: int) -> np.ndarray:
        return (2.0 * rng.integers(0, 2, (size, n)) - 1) / n

    return p_values(csc_array(generated - real), np.full(n, 1 / n), signs, permutations, seed)


def unpaired(generated: csc_array, real: csc_array, permutations: int, seed: int = 0) -> Float[np.ndarray, "n_latents"]:
    """p of the permutation test of the difference of means."""
    weights = np.r_[np.full(generated.shape[0], 1 / generated.shape[0]), np.full(real.shape[0], -1 / real.shape[0])]

    def permuted(rng: np.random.Generator, size: int) -> np.ndarray:
        return rng.permuted(np.tile(weights, (size, 1)), axis=1)

    return p_values(csc_array(vstack([generated, real])), weights, permuted, permutations, seed)


def p_values(
    values: csc_array, weights: Float[np.ndarray, "rows"], reshuffle: Reshuffle, permutations: int, seed: int = 0
) -> Float[np.ndarray, "n_latents"]:
    """p of every column of `values`; `reshuffle(rng, size)` gives [size, rows] weights as they could have been. Raises ValueError for no permutation."""
    if permutations < 1:
        raise ValueError(f"{permutations} permutations give no p-value: ask for at least 1.")
    rng, n_latents = np.random.default_rng(seed), values.shape[1]
    slack = SLACK * (abs(values).T @ np.abs(weights))
    bar = np.abs(values.T @ weights) - slack
    p, hits = np.full(n_latents, np.nan), np.zeros(n_latents, np.int64)
    left, done, size = np.arange(n_latents), 0, max(1, min(BLOCK, ENTRIES // len(weights)))
    while len(left) and done < permutations:
        drawn = reshuffle(rng, min(size, permutations - done))
        for some, block in dense_columns(values, left):
            exceeded = hits[some] + np.cumsum(np.abs(drawn @ block) >= bar[some], axis=0)
            hits[some] = exceeded[-1]
            over = exceeded[-1] >= ENOUGH
            p[some[over]] = ENOUGH / (done + 1 + (exceeded[:, over] >= ENOUGH).argmax(0))
        done += len(drawn)
        left = left[np.isnan(p[left])]
    p[left] = (1 + hits[left]) / (1 + done)
    return p


def dense_columns(
    values: csc_array, which: Int[np.ndarray, "some"]
) -> Iterator[tuple[Int[np.ndarray, "_"], Float[np.ndarray, "rows _"]]]:
    """(columns, their dense block in float64), so many at a time that memory is bounded."""
    width = max(1, min(4096, ENTRIES // max(values.shape[0], BLOCK)))
    for start in range(0, len(which), width):
        some = which[start : start + width]
        yield some, values[:, some].toarray().astype(np.float64)


def enough_for(tests: int, alpha: float) -> int:
    """Permutations with which one change among `tests` can pass Benjamini-Hochberg."""
    return max(999, math.ceil(tests / alpha))


def adjusted(p: Float[np.ndarray, "n_latents"]) -> Float[np.ndarray, "n_latents"]:
    """Benjamini-Hochberg: the smallest false discovery rate at which each is a discovery. NaN stays NaN and is no test."""
    tested = ~np.isnan(p)
    q = np.full(len(p), np.nan)
    if tested.any():
        q[tested] = false_discovery_control(p[tested], method="bh")
    return q
