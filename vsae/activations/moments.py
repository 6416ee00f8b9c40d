"""Per-dimension mean and second moment, in float64, of as many rows as there are.

    mean = sum x / count        second = sum x^2 / count        variance = second - mean^2

Sums are taken in numpy, row after row in blocks of a fixed size, so that they do not depend on the number of threads.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

BLOCK = 1024


@dataclass(frozen=True)
class Moments:
    """First and second moment about zero of `count` rows; zeros when there are none."""

    count: int
    mean: Float[Tensor, "d_model"]
    second: Float[Tensor, "d_model"]

    @property
    def variance(self) -> Float[Tensor, "d_model"]:
        """Per-dimension population variance, never below 0."""
        return (self.second - self.mean.square()).clamp_min(0)


@dataclass(frozen=True)
class Sums:
    """What moments are made of; adds up exactly as long as the order of adding is the same."""

    count: int
    first: Float[np.ndarray, "d_model"]
    second: Float[np.ndarray, "d_model"]

    @staticmethod
    def zero(d_model: int) -> "Sums":
        return Sums(0, np.zeros(d_model), np.zeros(d_model))

    @staticmethod
    def of(rows: Shaped[Tensor, "rows d_model"]) -> "Sums":
        """Sums of rows of any floating dtype, accumulated in float64."""
        first, second = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK].to(torch.float64).numpy()
            first += block.sum(0)
            second += np.square(block).sum(0)
        return Sums(len(rows), first, second)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.first + other.first, self.second + other.second)

    def moments(self) -> Moments:
        count = max(self.count, 1)
        return Moments(self.count, torch.from_numpy(self.first / count), torch.from_numpy(self.second / count))


def moments_of(batches: Iterable[Shaped[Tensor, "_ d_model"]], d_model: int) -> Moments:
    """Moments of all rows of all batches."""
    total = Sums.zero(d_model)
    for rows in batches:
        total = total + Sums.of(rows)
    return total.moments()
