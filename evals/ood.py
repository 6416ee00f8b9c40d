"""Out-of-distribution scores of SAE codes: class activation profiles (CAP) and what departs from them. Larger means further out.

    profile            h[c]  = mean code of class c on in-distribution training data
    mask               M[c]  = the share `top` of latents with the largest h[c]
    EPD                KL(P || Q),  P = z[M] / sum z[M],  Q = h[c][M] / sum h[c][M]       c = class assigned to the sample
    Spearman-CAP       1 - max_c rank correlation of z and h[c], over all latents
    max-CAP cosine     1 - max_c cos(z, h[c])
    L0, L1             -(latents with z != 0), -(sum |z|): silence is out

EPD: 2604.26409; Spearman-CAP: its earlier version. What EPD leaves open is fixed here: latents with P = 0 add nothing, a code that is silent on the whole mask
gets the largest score its mask allows, -log min Q, and Q is at least EPS. A silent code, too, has no direction: both 1 - max_c are 1 for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from scipy.stats import rankdata

from evals.ood_dense import unit

EPS = 1e-12
TOP = 0.15
BLOCK_ROWS = 1024

Codes: TypeAlias = csr_array
"""[samples, n_latents], one row an image; made dense BLOCK_ROWS at a time."""


@dataclass(frozen=True)
class Profiles:
    """Mean code of each class, and the latents each class is asked about."""

    mean: Float[np.ndarray, "classes n_latents"]
    top: float = TOP

    @property
    def mask(self) -> Int[np.ndarray, "classes kept"]:
        """The round(top * n_latents) latents with the largest mean, of equal ones the first."""
        kept = max(1, round(self.top * self.mean.shape[1]))
        return np.argsort(-self.mean, axis=1, kind="stable")[:, :kept]


def class_profiles(codes: Codes, labels: Int[np.ndarray, "samples"], n_classes: int, top: float = TOP) -> Profiles:
    """Mean code of each class. Raises ValueError for a class without samples, negative codes, and a share that is none."""
    if not 0 < top <= 1:
        raise ValueError(f"top is {top:g}: the share of latents in a class's mask lies above 0 and is at most 1.")
    counts = np.bincount(labels, minlength=n_classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise ValueError(f"classes {empty} have no training sample: drop them, or give samples of them.")
    if codes.nnz and codes.data.min() < 0:
        raise ValueError(
            "these codes have negative values, of which no distribution can be made: give both signs a latent of their own."
        )
    member = csr_array((1 / counts[labels], (labels, np.arange(len(labels)))), shape=(n_classes, len(labels)))
    return Profiles((member @ codes.astype(np.float64)).toarray(), top)


def epd(codes: Codes, assigned: Int[np.ndarray, "samples"], profiles: Profiles) -> Float[np.ndarray, "samples"]:
    """EPD of each sample against the profile of its assigned class. Unchanged when a code is multiplied by a positive number."""
    mask, scores = profiles.mask, []
    q_of_class = shares(np.take_along_axis(profiles.mean, mask, 1))
    for rows, z in blocks(codes):
        own = assigned[rows]
        z, q = np.take_along_axis(z, mask[own], 1), np.maximum(q_of_class[own], EPS)
        p = shares(z)
        divergence = np.where(p > 0, p * np.log(np.maximum(p, EPS) / q), 0).sum(1)
        scores.append(np.where(z.sum(1) > 0, divergence, -np.log(q.min(1))))
    return np.concatenate(scores)


def cosine_cap(codes: Codes, profiles: Profiles) -> Float[np.ndarray, "samples"]:
    """1 - the largest cosine with a profile."""
    directions = unit(profiles.mean)
    return np.concatenate([1 - (unit(z) @ directions.T).max(1) for _, z in blocks(codes)])


def spearman_cap(codes: Codes, profiles: Profiles) -> Float[np.ndarray, "samples"]:
    """1 - the largest rank correlation with a profile, ties having their mean rank; 1 for a constant code."""
    directions = unit(centred_ranks(profiles.mean))
    return np.concatenate(
        [1 - np.where(np.ptp(z, 1) > 0, (unit(centred_ranks(z)) @ directions.T).max(1), 0) for _, z in blocks(codes)]
    )


def nearest_cap(codes: Codes, profiles: Profiles) -> Int[np.ndarray, "samples"]:
    """Class whose profile has the largest cosine; the first of equal ones."""
    directions = unit(profiles.mean)
    return np.concatenate([(unit(z) @ directions.T).argmax(1) for _, z in blocks(codes)])


def silence_l0(codes: Codes) -> Float[np.ndarray, "samples"]:
    """Minus the number of latents that speak."""
    return -np.asarray((codes != 0).sum(1), np.float64)


def silence_l1(codes: Codes) -> Float[np.ndarray, "samples"]:
    """Minus the sum of absolute values."""
    return -np.asarray(abs(codes).astype(np.float64).sum(1))


def blocks(codes: Codes) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, these rows, dense in float64)."""
    if not codes.shape[0]:
        raise ValueError("there is no code to score: check which token kinds and which part were selected.")
    for start in range(0, codes.shape[0], BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        yield rows, codes[rows].toarray().astype(np.float64)


def shares(rows: Float[np.ndarray, "rows k"]) -> Float[np.ndarray, "rows k"]:
    """Rows that sum to 1; a row of zeros stays one."""
    total = rows.sum(1, keepdims=True)
    return rows / np.where(total > 0, total, 1)


def centred_ranks(rows: Float[np.ndarray, "rows k"]) -> Float[np.ndarray, "rows k"]:
    return rankdata(rows, axis=1) - (rows.shape[1] + 1) / 2
