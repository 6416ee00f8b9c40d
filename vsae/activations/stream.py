"""Shuffled batches straight from a running model: the interface of `StoreSource`, and nothing on disk.

A pool is as many whole chunks, in their order, as fit into `pool_rows`; its rows come out permuted. Only samples within a pool are mixed, so candidates
that lie in the order of their classes are better written to a store. Memory: one pool, one chunk, and while moments or rows for
initialisation are asked for, the first pool, which is kept until training takes it. Going on from a state runs the model again from its pool's first chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vsae.activations.batches import Batches
from vsae.activations.chunk import Chunk, MakeChunks
from vsae.activations.moments import Moments, Sums
from vsae.activations.rows import rows_of
from vsae.activations.select import Select
from vsae.activations.shard import DTYPES
from vsae.activations.source import Batch
from vsae.files import digest


class StreamSource:
    """The selected rows of one site of a model as a `Source`; `make_chunks(first batch)` runs the model.

    `samples` of a batch are numbered as a store of the same data would number them. Raises ValueError for a site the chunks do not have, for data
    without a selected row, and for a chunk larger than a pool.
    """

    def __init__(
        self,
        make_chunks: MakeChunks,
        site: str,
        select: Select | None = None,
        *,
        fingerprint: dict[str, Any],
        kind_names: Sequence[str],
        pool_rows: int = 131072,
        dtype: str = "bfloat16",
    ) -> None:
        self.make_chunks, self.site, self.select, self.pool_rows = make_chunks, site, select or Select(), pool_rows
        self.fingerprint, self.kind_names, self.dtype = fingerprint, tuple(kind_names), DTYPES[dtype]
        self._kinds = torch.from_numpy(self.select.kind_mask(self.kind_names))
        self._pad = self.kind_names.index("pad") if "pad" in self.kind_names else None
        self._first: _Pool | None = None
        self.d_model: int = self._first_pool().batch.values.shape[1]

    def moments(self) -> Moments:
        """Estimated from the rows of the first pool."""
        return Sums.of(self._first_pool().batch.values).moments()

    def sample_rows(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` random rows of the first pool in float32; all of it where it has fewer."""
        values = self._first_pool().batch.values
        return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:n]].float()

    def batches(
        self, batch_size: int, seed: int, state: dict[str, Any] | None = None, epochs: int | None = None
    ) -> Batches:
        """Batches of exactly `batch_size` rows, across pools and epochs; see `StoreSource.batches`."""
        plan = digest([self.fingerprint, self.site, self.select.describe(), self.pool_rows])
        start = state or {"seed": seed, "epoch": 0, "pool": 0, "chunk": 0, "sample": 0, "row": 0, "plan": plan}
        if (start["seed"], start["plan"]) != (seed, plan):
            raise ValueError(
                "the saved position belongs to another seed, model, selection or pool size: go on with those, or start anew."
            )
        return Batches(_Pools(self, start, epochs), batch_size, start)

    def _first_pool(self) -> "_Pool":
        if self._first is None:
            start = {"seed": 0, "epoch": 0, "pool": 0, "chunk": 0, "sample": 0, "row": 0}
            self._first = next(self.fill(start), None)
        if self._first is None:
            raise ValueError(
                f"no row of {self.site} is selected by {self.select} in this data: choose other kinds or a larger part."
            )
        return self._first

    def take_first(self) -> "_Pool | None":
        """The first pool, if it is at hand: then it need not be computed again."""
        first, self._first = self._first, None
        return first

    def fill(self, start: dict[str, Any]) -> Iterator["_Pool"]:
        """The pools of an epoch in the order of the data, from the one that begins at `start`."""
        place, rows, n = start, list[Batch](), 0
        chunk_number, sample = start["chunk"], start["sample"]
        for chunk in self.make_chunks(start["chunk"]):
            new = self._rows(chunk, sample)
            if len(new.values) > self.pool_rows:
                raise ValueError(
                    f"one batch gives {len(new.values)} rows, more than pool_rows ({self.pool_rows}): choose smaller batches or a larger pool."
                )
            if n + len(new.values) > self.pool_rows:
                here = place | {"pool": place["pool"] + 1, "chunk": chunk_number, "sample": sample, "row": 0}
                yield _Pool(_join(rows), place, here)
                place, rows, n = here, [], 0
            if len(new.values):
                rows.append(new)
            n, chunk_number, sample = n + len(new.values), chunk_number + 1, sample + len(chunk.samples)
        if n:
            yield _Pool(
                _join(rows), place, place | {"epoch": place["epoch"] + 1, "pool": 0, "chunk": 0, "sample": 0, "row": 0}
            )

    def _rows(self, chunk: Chunk, first: int) -> Batch:
        """The selected rows of a chunk."""
        if not chunk.samples:
            columns = (torch.empty(0, dtype=dtype) for dtype in (torch.uint8, torch.int64, torch.int32))
            return Batch(torch.empty(0, 0, dtype=self.dtype), *columns)
        if self.site not in chunk.activations:
            raise ValueError(f"the chunks have no site {self.site!r}, but {', '.join(chunk.activations)}.")
        keys = [str(row["key"]) for row in chunk.samples]
        index = torch.arange(first, first + len(keys))
        rows = rows_of(self.site, chunk.activations[self.site], index, keys, self.dtype, self._pad, True)
        keep = self._kinds[rows.kinds.long()]
        if self.select.skip:
            keep &= rows.positions >= self.select.skip
        if self.select.part != (0, 1):
            keep &= torch.from_numpy(self.select.sample_mask(keys))[rows.samples - first]
        return rows if keep.all() else Batch(*(column[keep] for column in rows))


@dataclass
class _Pool:
    """Rows in the order of the data until `shuffled`. `start` and `end`: the states at its first row, and after its last."""

    batch: Batch
    start: dict[str, Any]
    end: dict[str, Any]
    skip: int = 0

    @property
    def n_rows(self) -> int:
        return len(self.batch.values)

    def shuffled(self, seed: int, skip: int, start: dict[str, Any], end: dict[str, Any]) -> "_Pool":
        order = np.random.default_rng([seed, self.start["epoch"], self.start["pool"]]).permutation(self.n_rows)
        return _Pool(Batch(*(column[torch.from_numpy(order)] for column in self.batch)), start, end, skip)

    def rows(self, start: int, stop: int) -> Batch:
        return Batch(*(column[start:stop] for column in self.batch))

    def state(self, row: int) -> dict[str, Any]:
        return self.start | {"row": row} if row < self.n_rows else self.end


class _Pools:
    def __init__(self, source: StreamSource, start: dict[str, Any], epochs: int | None) -> None:
        self._source, self._start, self._epochs = source, start, epochs
        self._pools = self._run()

    def __iter__(self) -> Iterator[_Pool]:
        return self

    def __next__(self) -> _Pool:
        return next(self._pools)

    def prefetch(self) -> None:
        """A pool is filled when it is due: model and training share the device anyway."""

    def _run(self) -> Iterator[_Pool]:
        place, skip, run = self._start, self._start["row"], {name: self._start[name] for name in ("seed", "plan")}
        while self._epochs is None or place["epoch"] < self._epochs:
            before = place
            for pool in self._epoch(place):
                place = pool.end | run
                yield pool.shuffled(run["seed"], skip, pool.start | run, place)
                skip = 0
            if place is before:
                raise ValueError(
                    f"{self._source.site} gives no row from batch {place['chunk']} on: the data changed since the state was saved."
                )

    def _epoch(self, place: dict[str, Any]) -> Iterator[_Pool]:
        first = self._source.take_first() if place["epoch"] == place["chunk"] == 0 else None
        if first is None:
            return self._source.fill(place)
        return chain([first], self._source.fill(first.end) if first.end["epoch"] == 0 else [])


def _join(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(columns) for columns in zip(*batches, strict=True)))
