"""The shards that one process writes: a buffer for each that is being filled, and two on their way to disk."""

import fcntl
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsae.activations.manifest import part_name, site_folder
from vsae.activations.moments import Sums
from vsae.activations.place import Piece, default_rows
from vsae.activations.shard import DTYPES, write_shard
from vsae.activations.source import Batch


class Shards:
    """Fills shards piece by piece; done(entry) is called, in a thread of its own and in their order, for each that is on disk.

    Use it in a `with`: to the end of that the folder is held, so that nobody who goes on with the store meets a process that still writes to it.
    """

    def __init__(self, store: Path, job: Mapping[str, Any], done: Callable[[dict[str, Any]], None]) -> None:
        self.store, self.dtype, self.n_rows, self.done = store, DTYPES[job["dtype"]], job["rows_per_shard"], done
        self._open: dict[tuple[str, int], Batch] = {}
        self._pending: list[Future[None]] = []

    def __enter__(self) -> "Shards":
        self._folder = os.open(self.store, os.O_RDONLY)
        with suppress(OSError):  # file systems without locks
            fcntl.flock(self._folder, fcntl.LOCK_SH)
        # one thread: the model runs on while a shard is hashed, written and synced
        self._pool = ThreadPoolExecutor(1, "vsae-writer")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        os.close(self._folder)

    def slots(self, piece: Piece) -> Batch:
        """The memory that a piece's rows belong in."""
        key = piece.site, piece.part
        if key not in self._open:
            n = self.n_rows or default_rows(piece.d_model, self.dtype)
            dtypes = (torch.uint8, torch.int64, torch.int32)
            values = torch.empty(n, piece.d_model, dtype=self.dtype)
            self._open[key] = Batch(values, *(torch.empty(n, dtype=dtype) for dtype in dtypes))
        return Batch(*(column[piece.at : piece.at + piece.stop - piece.start] for column in self._open[key]))

    def filled(self, piece: Piece) -> None:
        """The slots of a piece hold its rows: write the shard if that completes it. Raises what an earlier write raised."""
        if piece.next is None:
            return
        entry = piece.entry
        rows = Batch(*(column[: entry["rows"]] for column in self._open.pop((piece.site, piece.part))))
        self._wait(1)
        self._pending.append(self._pool.submit(lambda: self.done(store_shard(self.store, entry, rows))))

    def put(self, piece: Piece, rows: Batch) -> None:
        """Take a piece's rows from memory."""
        for mine, theirs in zip(self.slots(piece), rows, strict=True):
            mine.copy_(theirs)
        self.filled(piece)

    def finish(self) -> None:
        """Wait until all that was completed is on disk."""
        self._wait(0)

    def _wait(self, at_most: int) -> None:
        while len(self._pending) > at_most:
            self._pending.pop(0).result()


def rows_at(rows: Batch, piece: Piece) -> Batch:
    """The rows of a batch that a piece tells of, with the numbers that their samples have in the store."""
    some = Batch(*(column[piece.start : piece.stop] for column in rows))
    return some._replace(samples=some.samples + piece.first)


def store_shard(store: Path, entry: dict[str, Any], rows: Batch) -> dict[str, Any]:
    """Write a shard; returns its journal entry, with size, checksum and the sums of each token kind's values."""
    size, checksum = write_shard(store / site_folder(entry["site"]) / part_name(entry["part"]), rows)
    sums = {}
    for kind in np.unique(rows.kinds.numpy()).tolist():
        of_kind = rows.values if bool((rows.kinds == kind).all()) else rows.values[rows.kinds == kind]
        total = Sums.of(of_kind)
        sums[str(kind)] = [total.count, total.first.tolist(), total.second.tolist()]
    return entry | {"bytes": size, "sha256": checksum, "sums": sums}
