"""How alike models see the same data: the overlap of their ITDA dictionaries, whose atoms are rows of the data (2505.17769; spec A1).

    S(A, B) = |A n B| / |A u B|          over (sample's key, token's position)
    floor     the same of rows chosen at random:    m / (|A| + |B| - m),  m = |A| |B| / N of the N rows that both were offered
    accuracy  share of the rows of a table whose largest S is that with their own counterpart; its floor is 1 / n    (layer matching)

What counts as much is the paper's other anchor, the S of two seeds of one model: give such runs, too. Intervals are 95 % bootstraps over samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from evals.result import Estimate
from vsae.itda import matched
from vsae.tables import Origin


@dataclass(frozen=True)
class Similarity:
    """S of every dictionary of one list with every one of another."""

    table: tuple[tuple[Estimate, ...], ...]
    """S of each of `first` (rows) with each of `second` (columns)."""
    mean: Estimate
    """Over the table; where the lists are the same one, over its pairs."""
    accuracy: Estimate | None
    """Where the lists are two of equal length."""
    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    """Atoms of each."""


def similar(
    first: Sequence[Sequence[Origin]],
    second: Sequence[Sequence[Origin]] | None,
    offered: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Similarity:
    """Compare the origins of dictionaries with each other, or with those of `second`. `offered`: N. Raises ValueError for fewer than two, and for more atoms than N."""
    others = first if second is None else second
    if len(first) + (0 if second is None else len(second)) < 2 or not others:
        raise ValueError("similarity compares two dictionaries or more.")
    a, b = ([{(each.key, each.position) for each in atoms} for atoms in side] for side in (first, others))
    if (most := max(map(len, a + b))) > offered:
        raise ValueError(
            f"a dictionary has {most:,} atoms, but {offered:,} rows were offered: say how many there were."
        )
    keys = {key: number for number, key in enumerate(sorted({key for atoms in a + b for key, _ in atoms}))}

    def of_samples(pairs: set[tuple[str, int]]) -> Float[np.ndarray, "samples"]:
        return np.bincount([keys[key] for key, _ in pairs], minlength=len(keys)).astype(float)

    both = np.array([[of_samples(x & y) for y in b] for x in a])
    either = np.array([[of_samples(x | y) for y in b] for x in a])
    # how often each sample is drawn, in each resample
    draws = np.random.default_rng(seed).multinomial(len(keys), np.full(len(keys), 1 / len(keys)), resamples).T
    drawn = ratio(both @ draws, either @ draws)
    values = ratio(both.sum(2), either.sum(2))
    floors = np.array([[chance(len(x), len(y), offered) for y in b] for x in a])
    counted = np.ones_like(values, bool) if second is not None else np.triu(np.ones_like(values, bool), 1)

    def estimate(value: float, floor: float, draws: Float[np.ndarray, "resamples"]) -> Estimate:
        return Estimate(value, floor, None if len(keys) < 2 else tuple(np.quantile(draws, (0.025, 0.975)).tolist()))

    table = tuple(
        tuple(estimate(float(values[i, j]), float(floors[i, j]), drawn[i, j]) for j in range(len(b)))
        for i in range(len(a))
    )
    mean = estimate(float(values[counted].mean()), float(floors[counted].mean()), drawn[counted].mean(0))
    accuracy = None
    if second is not None and len(a) == len(b) > 1:
        hits = np.array([matched(torch.from_numpy(drawn[:, :, draw])) for draw in range(resamples)])
        accuracy = estimate(matched(torch.from_numpy(values)), 1 / len(a), hits)
    return Similarity(table, mean, accuracy, (tuple(map(len, a)), tuple(map(len, b))))


def ratio(above: Float[np.ndarray, "..."], below: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """0 / 0 is 0: no atom in either."""
    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)


def chance(a: int, b: int, offered: int) -> float:
    """Expected overlap of `a` and `b` rows chosen at random of so many, over the union that goes with it."""
    m = a * b / offered
    return m / (a + b - m)
