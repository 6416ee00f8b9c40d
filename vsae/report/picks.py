"""The best few samples of every latent, kept while entries stream by."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, UInt64

PENDING = 2_000_000
"""Entries kept unsorted: what bounds the memory beside the picks themselves."""


@dataclass(frozen=True)
class Picks:
    """Picked (latent, sample) pairs, by latent, best first. Latent i owns entries start[i] to start[i + 1]."""

    start: Int64[np.ndarray, "latents_and_one"]
    sample: Int64[np.ndarray, "picks"]
    score: Float[np.ndarray, "picks"]

    def of(self, latent: int) -> slice:
        return slice(int(self.start[latent]), int(self.start[latent + 1]))

    def latents(self) -> Int64[np.ndarray, "picks"]:
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


class Picker:
    """Keeps the `m` highest-scored samples of each latent; of equal ones those with the lower sample number.

    A pair is to be added once: the same (latent, sample) again counts as another.
    """

    def __init__(self, n_latents: int, m: int) -> None:
        self.n_latents, self.m, self.pending = n_latents, m, 0
        self.columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self, latent: Int64[np.ndarray, "n"], sample: Int64[np.ndarray, "n"], score: Float[np.ndarray, "n"]
    ) -> None:
        self.columns.append((latent, sample, score))
        self.pending += len(latent)
        if self.pending > PENDING:
            self.compact()

    def compact(self) -> None:
        """Forget what is already beaten."""
        none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        latent, sample, score = (np.concatenate(column) for column in zip(*(self.columns or [none]), strict=True))
        order = np.lexsort((sample, -score, latent))
        latent = latent[order]
        rank = np.arange(len(latent)) - np.searchsorted(latent, latent)
        kept = order[rank < self.m]
        self.columns, self.pending = [(latent[rank < self.m], sample[kept], score[kept])], 0

    def picks(self) -> Picks:
        self.compact()
        latent, sample, score = self.columns[0]
        return Picks(np.searchsorted(latent, np.arange(self.n_latents + 1)), sample, score)


def without(picks: Picks, taken: list[Picks], m: int) -> Picks:
    """The first `m` picks of each latent that are in none of `taken`."""
    n_samples = 1 + max([0, *(int(p.sample.max()) for p in [picks, *taken] if len(p.sample))])
    latent = picks.latents()
    free = ~np.isin(
        latent * n_samples + picks.sample, np.concatenate([p.latents() * n_samples + p.sample for p in taken])
    )
    latent = latent[free]
    first = np.arange(len(latent)) - np.searchsorted(latent, latent) < m
    start = np.searchsorted(latent[first], np.arange(len(picks.start)))
    return Picks(start, picks.sample[free][first], picks.score[free][first])


def lottery(latent: Int64[np.ndarray, "n"], sample: Int64[np.ndarray, "n"], seed: int) -> Float[np.ndarray, "n"]:
    """A number in [0, 1) for each pair that depends on nothing else: splitmix64 of the two and the seed. The highest win."""
    state = mixed(mixed(latent.astype(np.uint64) + np.uint64(seed)) + sample.astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) / 2**53


def mixed(state: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """One step of splitmix64 (Steele et al. 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
