"""Where the rows of each batch go: shards of a site are filled in the order of the data, each whole before the next begins."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vsae.activations.shard import row_bytes

SHARD_BYTES = 256 << 20
BLOCK_ROWS = 256


class Piece(NamedTuple):
    """Rows `start` to `stop` of a batch, which are rows `at`, `at` + 1, ... of a shard; the batch's samples are numbered from `first` on.

    Where they complete the shard, `next` = (batch, row of it) at which the one after begins. JSON as it stands.
    """

    site: str
    d_model: int
    part: int
    at: int
    start: int
    stop: int
    first: int
    next: tuple[int, int] | list[int] | None

    @property
    def entry(self) -> dict[str, Any]:
        """What the journal says of the shard that this piece completes, before it is written."""
        assert self.next is not None
        rows = self.at + self.stop - self.start
        return {"site": self.site, "part": self.part, "rows": rows, "next": list(self.next)}


@dataclass
class Place:
    """How far a site's shards are filled. `done` = (batch, rows of it already on disk), with which shard `part` begins."""

    site: str
    d_model: int
    rows_per_shard: int
    done: tuple[int, int] = (0, 0)
    part: int = 0
    filled: int = 0

    def pieces(self, batch: int, n_rows: int, first: int) -> list[Piece]:
        """Where the rows of the next batch go, less those already on disk."""
        start = n_rows if batch < self.done[0] else self.done[1] if batch == self.done[0] else 0
        pieces = []
        while start < n_rows:
            stop = min(n_rows, start + self.rows_per_shard - self.filled)
            full = self.filled + stop - start == self.rows_per_shard
            after = ((batch + 1, 0) if stop == n_rows else (batch, stop)) if full else None
            pieces.append(Piece(self.site, self.d_model, self.part, self.filled, start, stop, first, after))
            self.part, self.filled = (self.part + 1, 0) if full else (self.part, self.filled + stop - start)
            start = stop
        return pieces

    def rest(self, end: int) -> list[Piece]:
        """What completes the last shard when the data end before batch `end`: no row, and nothing at all where none is begun."""
        if not self.filled:
            return []
        piece = Piece(self.site, self.d_model, self.part, self.filled, 0, 0, 0, (end, 0))
        self.part, self.filled = self.part + 1, 0
        return [piece]


def default_rows(d_model: int, dtype: torch.dtype) -> int:
    """Rows of a shard of about 256 MB, a whole number of blocks."""
    return max(1, SHARD_BYTES // row_bytes(d_model, dtype) // BLOCK_ROWS) * BLOCK_ROWS
