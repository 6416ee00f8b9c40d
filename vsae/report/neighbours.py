"""Which latents are near each other: by the direction they write, and by firing together.

cosine      of two atoms                                                  chance: the median for the nearest of n - 1 random directions, (1 + cos) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2)
Jaccard     |i and j| / |i or j|, over tokens                             chance: the same with |i and j| = |i| |j| / rows, as if independent
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from scipy.stats import beta
from torch import Tensor

BLOCK = 256
MIN_TOGETHER = 3
"""Tokens that two latents must share to be called co-firing."""


class Neighbours(NamedTuple):
    """The nearest `k` latents of each, nearest first; -1 where there are fewer."""

    latent: Int[np.ndarray, "n_latents k"]
    score: Float[np.ndarray, "n_latents k"]
    chance: Float[np.ndarray, "n_latents k"]


@torch.inference_mode()
def by_direction(atoms: Float[Tensor, "n_latents d_model"], k: int) -> Neighbours:
    """Highest cosine of the atoms; a zero atom has cosine 0 with all."""
    unit = torch.nn.functional.normalize(atoms.float(), dim=1)
    n, k = len(unit), min(k, len(unit) - 1)
    index, score = np.zeros((n, k), np.int64), np.zeros((n, k))
    for start in range(0, n, BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -torch.inf
        best = cosine.topk(k)
        index[start : start + BLOCK], score[start : start + BLOCK] = best.indices.cpu(), best.values.cpu()
    half = (unit.shape[1] - 1) / 2
    chance = 2 * float(beta.ppf(0.5 ** (1 / max(n - 1, 1)), half, half)) - 1 if half > 0 else 1.0
    return Neighbours(index, score, np.full_like(score, chance))


def by_firing(firing: sparse.csr_matrix, k: int) -> Neighbours:
    """Highest Jaccard index over the rows of `firing` [rows, n_latents], among latents that share at least MIN_TOGETHER rows."""
    rows, n = firing.shape
    k = min(k, n - 1)
    counts = np.asarray(firing.sum(0), np.float32).ravel()
    index, score, chance = np.full((n, k), -1), np.zeros((n, k)), np.zeros((n, k))
    columns = firing.tocsc()
    for start in range(0, n, BLOCK):
        both = (columns[:, start : start + BLOCK].T @ firing).toarray()
        either = counts[start : start + BLOCK, None] + counts - both
        jaccard = np.where(both >= MIN_TOGETHER, both / np.maximum(either, 1), np.float32(0))
        jaccard[np.arange(len(both)), np.arange(start, start + len(both))] = 0
        best = partial_sort(jaccard, k)
        here = np.take_along_axis(jaccard, best, 1)
        expected = counts[start : start + BLOCK, None] * counts[best] / max(rows, 1)
        alone = counts[start : start + BLOCK, None] + counts[best] - expected
        index[start : start + BLOCK] = np.where(here > 0, best, -1)
        score[start : start + BLOCK] = here
        chance[start : start + BLOCK] = expected / np.maximum(alone, 1)
    return Neighbours(index, score, chance)


def partial_sort(values: Float[np.ndarray, "rows n"], k: int) -> Int[np.ndarray, "rows k"]:
    """Columns of the `k` largest of each row, largest first, of equal ones the first."""
    found = np.sort(np.argpartition(-values, k, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(values, found, 1), axis=1, kind="stable")
    return np.take_along_axis(found, order, 1)
