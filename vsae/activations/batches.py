"""Batches out of pools: full ones across the borders of pools and epochs, so each row comes once an epoch and every batch has one size."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from vsae.activations.source import Batch


@runtime_checkable
class Pool(Protocol):
    """Shuffled rows in memory, to be consumed from row `skip` on."""

    @property
    def n_rows(self) -> int: ...

    @property
    def skip(self) -> int: ...

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start to stop, without a copy where that is safe."""

    def state(self, row: int) -> dict[str, Any]:
        """JSON that leads back to this row of this pool."""


@runtime_checkable
class Pools(Iterator[Pool], Protocol):
    def prefetch(self) -> None:
        """Called before each batch: begin to fill the next pool if there is memory for it."""


class Batches(Iterator[Batch]):
    """Batches of exactly `batch_size` rows; only the last one of a finite number of epochs may be shorter."""

    def __init__(self, pools: Pools, batch_size: int, state: dict[str, Any]) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but a batch holds at least one row.")
        self._pools = pools
        self._batch_size = batch_size
        self._start = state
        self._pool: Pool | None = None
        self._row = 0
        self._failure: Exception | None = None

    def state(self) -> dict[str, Any]:
        """JSON from which `batches(..., state=...)` goes on with the batch that would have come next."""
        return dict(self._start) if self._pool is None else self._pool.state(self._row)

    def __next__(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        place = self._pool, self._row
        try:
            self._pools.prefetch()
            return self._batch()
        except Exception as error:
            self._failure = error
            self._pool, self._row = place  # state() still tells the rows that were handed out
            raise

    def _batch(self) -> Batch:
        if not self._ready():
            raise StopIteration
        assert self._pool is not None
        if self._pool.n_rows - self._row >= self._batch_size:
            self._row += self._batch_size
            return self._pool.rows(self._row - self._batch_size, self._row)
        batch, filled = None, 0
        while filled < self._batch_size and self._ready():
            n = min(self._pool.n_rows - self._row, self._batch_size - filled)
            piece = self._pool.rows(self._row, self._row + n)
            if batch is None:
                batch = Batch(
                    *(torch.empty(self._batch_size, *column.shape[1:], dtype=column.dtype) for column in piece)
                )
            for mine, theirs in zip(batch, piece, strict=True):
                mine[filled : filled + n] = theirs
            filled, self._row = filled + n, self._row + n
        assert batch is not None
        return batch if filled == self._batch_size else Batch(*(column[:filled] for column in batch))

    def _ready(self) -> bool:
        """Whether there is a row left, with the pool that has it in hand."""
        if self._pool is None or self._row == self._pool.n_rows:
            pool = next(self._pools, None)
            if pool is None:
                return False
            self._pool, self._row = pool, pool.skip
        return True
