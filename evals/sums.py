"""Float64 sums of reconstruction errors, kept per group of samples so that they can be resampled.

For the rows of one token kind, with reference point c (its first row) and group g:  n, sum |x - x_hat|^2, sum |x - c|^2, sum (x - c), ...
The sum of squares about the mean of any set of groups follows without going back to the data:

    m - c = sum (x - c) / n           SST = sum |x - c|^2 - n |m - c|^2           over several kinds, + sum_kind n_kind |m_kind - m|^2

c is a row of the data, so nothing cancels when the mean is far larger than the spread, and it does not depend on how rows are batched.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from vsae.code import Code

MAX_GROUPS = 2048
"""Samples are resampled one by one up to this many, beyond it in this many groups: MAX_GROUPS * d_model * 8 bytes bound the memory of a kind."""

SCALARS = ("n", "error", "zero_error", "spread", "cosine", "zero_cosine", "l0", "l1", "code_square", "code_dot")


class Groups:
    """Numbers samples by first appearance, modulo MAX_GROUPS."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def __len__(self) -> int:
        return min(len(self.seen), MAX_GROUPS)

    def of(self, samples: Int64[Tensor, "rows"]) -> Int64[Tensor, "rows"]:
        unique, inverse = samples.unique(return_inverse=True)
        group = [self.seen.setdefault(sample, len(self.seen)) % MAX_GROUPS for sample in unique.tolist()]
        return torch.tensor(group, dtype=torch.int64)[inverse]


class KindSums:
    """Sums over the rows of one token kind."""

    def __init__(self, reference: Float64[Tensor, "d_model"], n_latents: int) -> None:
        self.reference = reference
        self.scalars = torch.zeros(MAX_GROUPS, len(SCALARS), dtype=torch.float64)
        self.offsets = torch.zeros(MAX_GROUPS, len(reference), dtype=torch.float64)
        self.firing = torch.zeros(n_latents, dtype=torch.int64)
        self.samples: set[int] = set()

    def add(
        self,
        x: Float64[Tensor, "rows d_model"],
        x_hat: Float64[Tensor, "rows d_model"],
        zero: Float64[Tensor, "1 d_model"],
        code: Code,
        group: Int64[Tensor, "rows"],
    ) -> None:
        """Add rows, their reconstructions, that of the zero code, and their codes."""
        offset, active = x - self.reference, code.values != 0
        per_row = {
            "n": torch.ones(len(x), dtype=torch.float64),
            "error": (x - x_hat).square().sum(1),
            "zero_error": (x - zero).square().sum(1),
            "spread": offset.square().sum(1),
            "cosine": torch.cosine_similarity(x, x_hat, eps=1e-300),
            "zero_cosine": torch.cosine_similarity(x, zero, eps=1e-300),
            "l0": active.sum(1).double(),
            "l1": code.values.double().abs().sum(1),
            "code_square": (x_hat - zero).square().sum(1),
            "code_dot": ((x_hat - zero) * (x - zero)).sum(1),
        }
        self.scalars.index_add_(0, group, torch.stack([per_row[name] for name in SCALARS], 1))
        self.offsets.index_add_(0, group, offset)
        n_latents = len(self.firing)
        self.firing += code.counts(n_latents)


def rows_of(code: Code, rows: Int64[Tensor, "picked"], n_latents: int) -> Code:
    """The code of some rows; a full code stays one, so that its indices cost nothing."""
    if code.is_full(n_latents):
        return Code.full(code.values[rows])
    return Code(code.values[rows], code.indices[rows])


def totals(
    kinds: Sequence[KindSums], weights: Float64[np.ndarray, "draws groups"]
) -> dict[str, Float[np.ndarray, "draws"]]:
    """SCALARS, and `variation` (the sum of squares about the mean), of the groups taken `weights` times each."""
    groups = weights.shape[1]
    scalars = [weights @ kind.scalars[:groups].numpy() for kind in kinds]
    result = dict(zip(SCALARS, np.sum(scalars, axis=0).T, strict=True))
    counts = [scalar[:, SCALARS.index("n")] for scalar in scalars]
    shifts = [
        weights @ kind.offsets[:groups].numpy() / np.maximum(n, 1)[:, None]
        for kind, n in zip(kinds, counts, strict=True)
    ]
    spreads = [scalar[:, SCALARS.index("spread")] for scalar in scalars]
    within = [
        np.where(n * np.square(shift).sum(1) < (1 - 1e-12) * spread, spread - n * np.square(shift).sum(1), 0)
        for spread, n, shift in zip(spreads, counts, shifts, strict=True)
    ]
    means = [(kind.reference - kinds[0].reference).numpy() + shift for kind, shift in zip(kinds, shifts, strict=True)]
    n_all = np.maximum(result["n"], 1)
    mean = sum(n[:, None] * m for n, m in zip(counts, means, strict=True)) / n_all[:, None]
    between = [n * np.square(m - mean).sum(1) for n, m in zip(counts, means, strict=True)]
    return result | {"variation": np.sum(within, axis=0) + np.sum(between, axis=0)}


def draws(groups: int, resamples: int, seed: int) -> Float64[np.ndarray, "resamples groups"]:
    """How often each group is drawn in each bootstrap resample."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples).astype(np.float64)
