"""Two sites of the same samples, read together: row i of one belongs to row i of the other, in the order of one shuffle.

    pairs = store.pairs("image_embedding", "text_embedding")
    for image, text in pairs.batches(512, seed=0): ...

The shuffle is of samples, not of rows, so it is the same whatever a shard or a sample holds: blocks of neighbours make pools, and each pool is
permuted; everything follows from (seed, epoch).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae.activations.loader import StoreSource
from vsae.activations.moments import Moments
from vsae.activations.plan import Blocks, PoolPlan, epoch_plan
from vsae.activations.select import Select
from vsae.activations.shard import open_shard
from vsae.activations.source import Batch
from vsae.activations.store import SiteReader
from vsae.files import digest

Kinds = Sequence[str] | None


class Pair(NamedTuple):
    """Rows of the same samples in the same order. `samples` of both tell which rows belong together; pooled, row i does to row i."""

    first: Batch
    second: Batch


class PairSource:
    """Samples that have rows at both sites.

    kinds: the token kinds of each site (None: all but padding). part: the share of the samples, as in `Select`.
    tokens: False: each sample has exactly one selected row at each site (embeddings, class tokens). True: as many as it has.
    Raises ValueError where the sites are of different samples, a sample has another number of rows, or no pair is left.
    """

    def __init__(
        self,
        first: SiteReader,
        second: SiteReader,
        kinds: tuple[Kinds, Kinds] = (None, None),
        part: tuple[float | int, float | int] = (0.0, 1.0),
        tokens: bool = False,
        pool_samples: int = 16384,
        block_samples: int = 64,
    ) -> None:
        if not 1 <= block_samples <= pool_samples:
            raise ValueError(
                f"block_samples is {block_samples} and pool_samples {pool_samples}: a pool holds at least one block of at least one sample."
            )
        _check_same_samples(first, second)
        self.sites = first, second
        self.selects = tuple(Select(tuple(some) if some is not None else None, part) for some in kinds)
        self.tokens, self.pool_samples, self.block_samples = tokens, pool_samples, block_samples
        self._rows = tuple(_SampleRows(*one) for one in zip(self.sites, self.selects, strict=True))
        counts = [np.diff(rows.starts) for rows in self._rows]
        asked = self.selects[0].sample_mask(first.keys)
        if not tokens:
            for site, count in zip(self.sites, counts, strict=True):
                _check_one_row(site, np.where(asked, count, 1))
        self.samples: Int[np.ndarray, "samples"] = np.flatnonzero(asked & (counts[0] > 0) & (counts[1] > 0))
        """Rows of the table of samples that make a pair; `n_skipped` of those asked for lack rows at one of the sites."""
        self.n_skipped = int(asked.sum()) - len(self.samples)
        if not len(self.samples):
            raise ValueError(
                f"no sample has rows of these kinds at both {first.name} and {second.name}: choose other kinds or a larger part."
            )

    @property
    def fingerprint(self) -> tuple[dict[str, Any], dict[str, Any]]:
        first, second = (
            site.fingerprint | {"select": select.describe()}
            for site, select in zip(self.sites, self.selects, strict=True)
        )
        return first, second

    def moments(self) -> tuple[Moments, Moments]:
        """Moments of the selected rows of each site."""
        first, second = (StoreSource(*one).moments() for one in zip(self.sites, self.selects, strict=True))
        return first, second

    def sample_rows(self, n: int, seed: int) -> tuple[Float[Tensor, "n d_first"], Float[Tensor, "n d_second"]]:
        """`n` random pairs of rows in float32, all of them where there are fewer. Raises ValueError for pairs of several tokens."""
        if self.tokens:
            raise ValueError(
                "pairs of tokens have no row each: read pooled sites, or one kind of which each sample has one."
            )
        chosen = np.random.default_rng([seed, len(self.samples)]).permutation(len(self.samples))[:n]
        first, second = (values.float() for values in (batch.values for batch in self._read(chosen)))
        return first, second

    def sequential(self, batch_size: int) -> Iterator[Pair]:
        """All pairs in order, `batch_size` samples at a time; the last batch is shorter."""
        for start in range(0, len(self.samples), batch_size):
            yield self._read(np.arange(start, min(start + batch_size, len(self.samples))))

    def batches(
        self, batch_size: int, seed: int, state: dict[str, Any] | None = None, epochs: int | None = None
    ) -> "PairBatches":
        """Pairs of `batch_size` samples, each sample once an epoch, in another order every epoch; endless unless `epochs` is given.

        What is left at the end of an epoch is filled up from the next one. `state`: of `PairBatches.state`, to go on exactly there.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but a batch holds at least one sample.")
        names = [
            (site.fingerprint["store"], site.name, s.describe())
            for site, s in zip(self.sites, self.selects, strict=True)
        ]
        plan = digest([names, self.tokens, self.pool_samples, self.block_samples])
        start = state or {"seed": seed, "epoch": 0, "sample": 0, "plan": plan}
        if (start["seed"], start["plan"]) != (seed, plan):
            raise ValueError(
                "the saved position belongs to another seed, store, selection or pool size: go on with those, or start anew."
            )
        return PairBatches(self, batch_size, start, epochs)

    def _read(self, chosen: Int[np.ndarray, "some"]) -> Pair:
        """Pairs `chosen` (indices into `samples`), in that order."""
        order = np.argsort(chosen)
        where = np.empty_like(order)
        where[order] = np.arange(len(order))
        return Pair(*(self._of_site(rows, self.samples[chosen[order]], where) for rows in self._rows))

    def _of_site(
        self, rows: "_SampleRows", ascending: Int[np.ndarray, "some"], where: Int[np.ndarray, "some"]
    ) -> Batch:
        """Rows of samples, read as they lie in the files and put in the order `where`."""
        counts = rows.starts[ascending + 1] - rows.starts[ascending]
        batch = rows.site.gather(rows.rows(ranges(rows.starts[ascending], counts)))
        index = torch.from_numpy(ranges((np.cumsum(counts) - counts)[where], counts[where]))
        return Batch(*(column[index] for column in batch))


class PairBatches:
    """Iterator of a `PairSource`; a thread reads the next pool while one is handed out."""

    def __init__(self, source: PairSource, batch_size: int, start: dict[str, Any], epochs: int | None) -> None:
        self._source, self._batch_size, self._place = source, batch_size, dict(start)
        self._epochs = epochs
        self._thread = ThreadPoolExecutor(1, "vsae-pairs")
        self._plans = self._orders(dict(start))
        self._next = self._submit()
        self._pool: Pair | None = None
        self._edges: list[Int[np.ndarray, "samples_and_one"]] = []
        self._at = self._n = 0

    def state(self) -> dict[str, Any]:
        """JSON from which `batches(..., state=...)` goes on with the batch that would have come next."""
        place = dict(self._place)
        if place["sample"] == len(self._source.samples):
            place |= {"epoch": place["epoch"] + 1, "sample": 0}
        return place

    def __iter__(self) -> Iterator[Pair]:
        return self

    def __next__(self) -> Pair:
        pieces: list[Pair] = []
        missing = self._batch_size
        while missing and self._ready():
            n = min(missing, self._n - self._at)
            pieces.append(self._cut(self._at, self._at + n))
            self._at, missing = self._at + n, missing - n
            self._place = self.state()
            self._place["sample"] += n
        if not pieces:
            self._thread.shutdown(wait=False)
            raise StopIteration
        if len(pieces) == 1:
            return pieces[0]
        return Pair(*(Batch(*(torch.cat(c) for c in zip(*side, strict=True))) for side in zip(*pieces, strict=True)))

    def _cut(self, start: int, stop: int) -> Pair:
        assert self._pool is not None
        spans = [slice(int(edges[start]), int(edges[stop])) for edges in self._edges]
        return Pair(*(Batch(*(c[span] for c in side)) for side, span in zip(self._pool, spans, strict=True)))

    def _ready(self) -> bool:
        """Whether there is a sample left, with its pool in hand."""
        while self._at == self._n:
            if self._next is None:
                return False
            chosen, future = self._next
            self._pool = future.result()
            self._next = self._submit()
            self._at, self._n = 0, len(chosen)
            samples = self._source.samples[chosen]
            counts = [rows.starts[samples + 1] - rows.starts[samples] for rows in self._source._rows]
            self._edges = [np.concatenate([[0], np.cumsum(count)]) for count in counts]
        return True

    def _submit(self) -> tuple[Int[np.ndarray, "some"], Future[Pair]] | None:
        chosen = next(self._plans, None)
        return None if chosen is None else (chosen, self._thread.submit(self._source._read, chosen))

    def _orders(self, start: dict[str, Any]) -> Iterator[Int[np.ndarray, "some"]]:
        """Pools still to come, each as its samples in their order."""
        source, seed, epoch, skip = self._source, start["seed"], start["epoch"], start["sample"]
        blocks = Blocks.of(np.array([0, len(source.samples)]), source.block_samples, None)
        while self._epochs is None or epoch < self._epochs:
            for plan in epoch_plan(blocks.counts, seed, epoch, source.pool_samples, source.block_samples):
                if (left := plan.first_row + plan.n_rows - skip) > 0:
                    yield _order(blocks, plan, seed)[-left:] if left < plan.n_rows else _order(blocks, plan, seed)
            epoch, skip = epoch + 1, 0


class _SampleRows:
    """Where the selected rows of each sample are: those of sample s are rows(starts[s] to starts[s + 1])."""

    def __init__(self, site: SiteReader, select: Select) -> None:
        self.site = site
        every, n = Select(select.kinds), len(site.keys)
        counts, found = np.zeros(n, np.int64), []
        self._found: Int[np.ndarray, "rows"] | None = None
        if site.selects_all(every) and site.tokens is not None:
            counts += site.tokens
        else:
            for part in range(len(site.edges) - 1):
                rows = np.flatnonzero(site.part_mask(part, every))
                with open_shard(site.part_path(part), site.d_model, site.dtype) as shard:
                    counts += np.bincount(shard.meta("samples", 0, shard.n_rows)[rows], minlength=n)
                found.append(rows + site.edges[part])
            self._found = np.concatenate(found) if found else np.empty(0, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def rows(self, index: Int[np.ndarray, "some"]) -> Int[np.ndarray, "some"]:
        return index if self._found is None else self._found[index]


def ranges(starts: Int[np.ndarray, "n"], counts: Int[np.ndarray, "n"]) -> Int[np.ndarray, "total"]:
    """start, start + 1, ... start + count - 1 of each, one after the other."""
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))


def _order(blocks: Blocks, plan: PoolPlan, seed: int) -> Int[np.ndarray, "some"]:
    order = np.empty(plan.n_rows, np.int64)
    order[plan.slots(seed)] = blocks.rows(plan.blocks)
    return order


def _check_same_samples(first: SiteReader, second: SiteReader) -> None:
    if first.store is second.store:
        return
    remedy = "extract both from the same data, best with both sites in one command."
    if len(first.keys) != len(second.keys):
        raise ValueError(
            f"{first.name} has {len(first.keys)} samples and {second.name} {len(second.keys)}, so they do not pair: {remedy}"
        )
    for number, (ours, theirs) in enumerate(zip(first.keys, second.keys, strict=True)):
        if ours != theirs:
            raise ValueError(
                f"sample {number} is {ours!r} at {first.name} and {theirs!r} at {second.name}, so they do not pair: {remedy}"
            )


def _check_one_row(site: SiteReader, counts: Int[np.ndarray, "samples"]) -> None:
    if len(wrong := np.flatnonzero(counts != 1)):
        raise ValueError(
            f"{site.name} has {counts[wrong[0]]} rows of sample {site.keys[wrong[0]]!r} where a pair needs one: "
            "choose a pooled site, a token kind of which each sample has one, or tokens=True."
        )
