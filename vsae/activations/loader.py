"""Shuffled batches from a store, as fast as the disk reads, in bounded memory.

Blocks of rows are read whole, in the order of the files, by threads that put each row straight into a random slot of the pool being filled; the
pool before it is handed out meanwhile, batch after batch, without a copy. Memory: two pools of at most `pool_rows` rows of
(d_model * bytes + 13) each, and one bit a stored row when only some rows are selected. A pool whose batches are still held somewhere is
left to them and another one is made, so a batch never changes under its holder: keep a clone, not the batch, of what should stay for long.
The order depends on (seed, epoch) alone (`plan.py`); `performance.md` section 6 has the measurements behind the sizes.
"""

import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae.activations.batches import Batches
from vsae.activations.moments import Moments, Sums
from vsae.activations.plan import Blocks, PoolPlan, epoch_plan
from vsae.activations.select import Select
from vsae.activations.shard import Columns
from vsae.activations.source import Batch
from vsae.activations.store import SiteReader
from vsae.files import digest

TASKS_A_THREAD = 4
CHUNK_ROWS = 16384


class StoreSource:
    """The selected rows of a site as a `Source`.

    Raises ValueError when nothing is selected or a pool cannot hold a block; while reading, a missing or damaged shard is a sentence.
    """

    def __init__(
        self,
        site: SiteReader,
        select: Select | None = None,
        pool_rows: int = 131072,
        block_rows: int = 256,
        threads: int = 2,
    ) -> None:
        if not 1 <= block_rows <= pool_rows:
            raise ValueError(
                f"block_rows is {block_rows} and pool_rows {pool_rows}: a pool holds at least one block of at least one row."
            )
        if threads < 1:
            raise ValueError(f"threads is {threads}, but at least one thread reads.")
        self.site = site
        self.select = select or Select()
        self.pool_rows, self.block_rows, self.threads = pool_rows, block_rows, threads
        mask = None if site.selects_all(self.select) else lambda part: site.part_mask(part, self.select)
        self.blocks = Blocks.of(site.edges, block_rows, mask)
        self.n_rows = self.blocks.n_rows
        if self.n_rows == 0:
            raise ValueError(
                f"no row of {site.name} is selected by {self.select}: choose other kinds or a larger part."
            )

    @property
    def d_model(self) -> int:
        return self.site.d_model

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The site's, and which of its rows are taken."""
        return self.site.fingerprint | {"select": self.select.describe()}

    @property
    def kind_names(self) -> tuple[str, ...]:
        return self.site.kind_names

    def moments(self) -> Moments:
        """Exact moments of the selected rows; of a part of the samples, the smaller of it and its complement is read. With `skip`, all of them are."""
        if self.select.skip:
            return self._sums(self.select).moments()
        low, high = self.select.part
        whole = self.site.stats(self.select.kinds)
        if (low, high) == (0, 1):
            return whole
        if high - low <= 0.5:
            return self._sums(self.select).moments()
        total = Sums(whole.count, whole.count * whole.mean.numpy(), whole.count * whole.second.numpy())
        for part in ((0.0, low), (high, 1.0)):
            if part[0] < part[1]:
                rest = self._sums(Select(self.select.kinds, part))
                total = total + Sums(-rest.count, -rest.first, -rest.second)
        return total.moments()

    def _sums(self, select: Select) -> Sums:
        total = Sums.zero(self.d_model)
        for batch in self.site.sequential(CHUNK_ROWS, select):
            total = total + Sums.of(batch.values)
        return total

    def sample_rows(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` random selected rows in float32, in random order; all of them where there are fewer."""
        rng = np.random.default_rng([seed, self.n_rows])
        chosen = rng.choice(self.n_rows, min(n, self.n_rows), replace=False)
        ends = np.cumsum(self.blocks.counts)
        blocks, inverse = np.unique(np.searchsorted(ends, chosen, side="right"), return_inverse=True)
        starts = np.cumsum(self.blocks.counts[blocks]) - self.blocks.counts[blocks]
        within = chosen - (ends - self.blocks.counts)[blocks][inverse]
        rows = self.blocks.rows(blocks)[starts[inverse] + within]
        order = np.argsort(rows)
        values = torch.empty(len(rows), self.d_model)
        for start in range(0, len(rows), CHUNK_ROWS):
            some = order[start : start + CHUNK_ROWS]
            values[torch.from_numpy(some)] = self.site.gather(rows[some]).values.float()
        return values

    def batches(
        self, batch_size: int, seed: int, state: dict[str, Any] | None = None, epochs: int | None = None
    ) -> Batches:
        """Batches of exactly `batch_size` rows: what is left at the end of an epoch is filled up from the next one.

        With `epochs`, it ends after that many (counted from the first, also on resume), and the last batch may be shorter. `state` must come from
        a source with the same store, selection and sizes; another batch size goes on from the same row.
        """
        plan = digest(
            [
                self.fingerprint["store"],
                self.site.name,
                self.select.kinds,
                self.select.part,
                self.pool_rows,
                self.block_rows,
                *([self.select.skip] if self.select.skip else []),
            ]
        )
        start = state or {"seed": seed, "epoch": 0, "row": 0, "plan": plan}
        if (start["seed"], start["plan"]) != (seed, plan):
            raise ValueError(
                "the saved position belongs to another seed, store, selection or pool size: go on with those, or start anew."
            )
        return Batches(_Pools(self, start, epochs), batch_size, start)


class _Memory:
    """One pool's memory, and whether a batch of it is still held."""

    def __init__(self, n: int, d_model: int, dtype: torch.dtype) -> None:
        self.columns = Columns.empty(n, d_model, dtype)
        self.dtype = dtype
        self._held: list[weakref.ref[np.ndarray]] = []

    def rows(self, start: int, stop: int) -> Batch:
        # torch keeps the very array it was given alive as long as any tensor shares its memory, so its death tells that the slot is free
        part = Columns(*(column[start:stop] for column in self.columns))
        self._held.append(weakref.ref(part.values))
        return part.batch(self.dtype)

    def free(self) -> bool:
        self._held = [held for held in self._held if held() is not None]
        return not self._held


class _Pool:
    def __init__(self, memory: _Memory, plan: PoolPlan, start: dict[str, Any], n_epoch: int) -> None:
        self.memory, self.plan, self.start, self.n_epoch = memory, plan, start, n_epoch
        self.n_rows = plan.n_rows
        begun_here = plan.epoch == start["epoch"] and plan.first_row <= start["row"]
        self.skip = start["row"] - plan.first_row if begun_here else 0

    def rows(self, start: int, stop: int) -> Batch:
        return self.memory.rows(start, stop)

    def state(self, row: int) -> dict[str, Any]:
        row += self.plan.first_row
        place = (
            {"epoch": self.plan.epoch, "row": row} if row < self.n_epoch else {"epoch": self.plan.epoch + 1, "row": 0}
        )
        return self.start | place


class _Pools:
    """Two memories: one is handed out while threads fill the other."""

    def __init__(self, source: StoreSource, start: dict[str, Any], epochs: int | None) -> None:
        self._source, self._start = source, start
        self._plans = _plans(source, start, epochs)
        self._memories: list[_Memory] = []
        self._current: _Memory | None = None
        self._next: tuple[PoolPlan, _Memory, list[Future[None]]] | None = None
        self._executor = ThreadPoolExecutor(source.threads, "vsae-reader")
        weakref.finalize(self, self._executor.shutdown, wait=False, cancel_futures=True)

    def __iter__(self) -> Iterator[_Pool]:
        return self

    def __next__(self) -> _Pool:
        if self._next is None:
            self._fill(self._idle() or self._replace())
        if self._next is None:
            raise StopIteration
        plan, memory, tasks = self._next
        for task in tasks:
            task.result()
        self._next, self._current = None, memory
        return _Pool(memory, plan, self._start, self._source.n_rows)

    def prefetch(self) -> None:
        if self._next is None and (memory := self._idle()):
            self._fill(memory)

    def _idle(self) -> _Memory | None:
        if len(self._memories) < 2:
            self._memories.append(self._new())
        return next((memory for memory in self._memories if memory is not self._current and memory.free()), None)

    def _replace(self) -> _Memory:
        """The consumer still holds a batch of the idle memory: leave it to them."""
        self._memories = [memory for memory in self._memories if memory is self._current] + [self._new()]
        return self._memories[-1]

    def _new(self) -> _Memory:
        source = self._source
        return _Memory(min(source.pool_rows, source.n_rows), source.d_model, source.site.dtype)

    def _fill(self, memory: _Memory) -> None:
        plan = next(self._plans, None)
        if plan is None:
            return
        source, seed = self._source, self._start["seed"]
        slots = self._executor.submit(plan.slots, seed)
        edges = np.unique(np.linspace(0, len(plan.blocks), TASKS_A_THREAD * source.threads + 1).astype(int))
        rows = np.concatenate([[0], np.cumsum(source.blocks.counts[plan.blocks])])[edges]
        pieces = zip(edges[:-1], edges[1:], rows[:-1], rows[1:], strict=True)
        tasks = [
            self._executor.submit(
                _read, source.site, source.blocks, plan.blocks[a:b], memory.columns, slots, slice(low, high)
            )
            for a, b, low, high in pieces
        ]
        self._next = plan, memory, tasks


def _plans(source: StoreSource, start: dict[str, Any], epochs: int | None) -> Iterator[PoolPlan]:
    """The pools still to come; of the epoch it starts in, from the pool that holds the row."""
    epoch = start["epoch"]
    while epochs is None or epoch < epochs:
        for plan in epoch_plan(source.blocks.counts, start["seed"], epoch, source.pool_rows, source.block_rows):
            if epoch > start["epoch"] or plan.first_row + plan.n_rows > start["row"]:
                yield plan
        epoch += 1


def _read(
    site: SiteReader,
    blocks: Blocks,
    some: Int[np.ndarray, "some"],
    out: Columns,
    slots: Future[Int[np.ndarray, "rows"]],
    mine: slice,
) -> None:
    """Some blocks of a pool into their slots (in a thread; holds no reference to the iterator, so that dropping it stops the threads)."""
    site.scatter(blocks.rows(some), out, slots.result()[mine])
