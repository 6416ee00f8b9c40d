"""The order of an epoch: a permutation of blocks, cut into pools, and a permutation of the rows of each pool.

A block is up to `block_rows` neighbouring rows of one shard, read together. Everything follows from (seed, epoch), so a position is a number of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int, UInt8


@dataclass(frozen=True)
class Blocks:
    """The blocks of a site that hold selected rows. `bits`: one bit a row of each shard, None when every row is selected."""

    starts: Int[np.ndarray, "blocks"]
    stops: Int[np.ndarray, "blocks"]
    counts: Int[np.ndarray, "blocks"]
    edges: Int[np.ndarray, "shards_and_one"]
    bits: list[UInt8[np.ndarray, "_"]] | None

    @staticmethod
    def of(
        edges: Int[np.ndarray, "shards_and_one"],
        block_rows: int,
        mask: Callable[[int], Bool[np.ndarray, "rows"]] | None,
    ) -> "Blocks":
        """Blocks of shards that begin and end at the row numbers `edges`; mask(part) says which rows of a shard are selected."""
        spans = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        starts = np.concatenate([np.arange(low, high, block_rows) for low, high in spans] or [np.empty(0, np.int64)])
        stops = np.concatenate(
            [np.minimum(np.arange(low, high, block_rows) + block_rows, high) for low, high in spans]
            or [np.empty(0, np.int64)]
        )
        if mask is None:
            return Blocks(starts, stops, stops - starts, edges, None)
        bits, counts = [], [np.empty(0, np.int64)]
        for part, (low, high) in enumerate(spans):
            rows = mask(part)
            bits.append(np.packbits(rows))
            counts.append(np.add.reduceat(rows, np.arange(0, high - low, block_rows), dtype=np.int64))
        count = np.concatenate(counts)
        some = count > 0
        return Blocks(starts[some], stops[some], count[some], edges, bits)

    @property
    def n_rows(self) -> int:
        """Selected rows."""
        return int(self.counts.sum())

    def rows(self, blocks: Int[np.ndarray, "some"]) -> Int[np.ndarray, "rows"]:
        """The selected rows of these blocks, block after block."""
        return np.concatenate([self._rows(block) for block in blocks.tolist()])

    def _rows(self, block: int) -> Int[np.ndarray, "rows"]:
        start, stop = int(self.starts[block]), int(self.stops[block])
        if self.bits is None:
            return np.arange(start, stop)
        part = int(np.searchsorted(self.edges, start, side="right")) - 1
        here = start - int(self.edges[part])
        byte = here // 8
        bits = np.unpackbits(self.bits[part][byte : (here + stop - start + 7) // 8])
        return start + np.flatnonzero(bits[here - 8 * byte : here - 8 * byte + stop - start])


@dataclass(frozen=True)
class PoolPlan:
    """One pool of an epoch: rows [first_row, first_row + n_rows) of its order, made of these blocks (in the order of the files)."""

    epoch: int
    number: int
    first_row: int
    n_rows: int
    blocks: Int[np.ndarray, "some"]

    def slots(self, seed: int) -> Int[np.ndarray, "rows"]:
        """Where in the pool each of its rows goes."""
        return np.random.default_rng([seed, self.epoch, self.number + 1]).permutation(self.n_rows)


def epoch_plan(
    counts: Int[np.ndarray, "blocks"], seed: int, epoch: int, pool_rows: int, block_rows: int
) -> list[PoolPlan]:
    """All blocks in an order of their own, in pools of nearly equal size and at most `pool_rows` rows."""
    order = np.random.default_rng([seed, epoch, 0]).permutation(len(counts))
    ends = np.cumsum(counts[order])
    total = int(ends[-1])
    # a pool may pass its even share by part of a block: n is large enough for that to stay within pool_rows
    n = -(-total // (pool_rows - block_rows + 1)) if total > pool_rows else 1
    cuts = np.searchsorted(ends, np.linspace(0, total, n + 1)[1:]) + 1
    edges = np.unique(np.concatenate([[0], cuts]))
    rows = np.concatenate([[0], ends])[edges].tolist()
    return [
        PoolPlan(epoch, number, rows[number], rows[number + 1] - rows[number], np.sort(order[a:b]))
        for number, (a, b) in enumerate(pairwise(edges))
    ]
