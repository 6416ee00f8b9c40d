"""The rows of one site on their way to disk: a buffer the size of a shard, and where in the run of batches it stands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from vsae.activations.chunk import TokenValues
from vsae.activations.manifest import part_name, site_folder
from vsae.activations.moments import Sums
from vsae.activations.shard import DTYPES, row_bytes, write_shard
from vsae.activations.source import Batch

SHARD_BYTES = 256 << 20
BLOCK_ROWS = 256


@dataclass
class SiteWriter:
    """Takes batches in order and hands out full shards. `at` = (batch, rows of it already on disk)."""

    site: str
    d_model: int
    rows_per_shard: int
    dtype: torch.dtype
    at: tuple[int, int] = (0, 0)
    part: int = 0
    filled: int = 0
    buffer: Batch = field(init=False)

    def __post_init__(self) -> None:
        self._renew()

    def add(self, batch: int, rows: Batch) -> list[tuple[dict[str, Any], Batch]]:
        """Take the rows of a batch, less those already on disk. Returns the shards they complete, each with its place in the run."""
        start = len(rows.values) if batch < self.at[0] else self.at[1] if batch == self.at[0] else 0
        finished = []
        while start < len(rows.values):
            n = min(len(rows.values) - start, self.rows_per_shard - self.filled)
            for mine, theirs in zip(self.buffer, rows, strict=True):
                mine[self.filled : self.filled + n] = theirs[start : start + n]
            start, self.filled = start + n, self.filled + n
            if self.filled == self.rows_per_shard:
                finished.append(self.cut((batch + 1, 0) if start == len(rows.values) else (batch, start)))
        return finished

    def cut(self, next_at: tuple[int, int]) -> tuple[dict[str, Any], Batch]:
        """The rows in the buffer as a shard; what follows it begins at `next_at`."""
        shard = Batch(*(column[: self.filled] for column in self.buffer))
        entry = {"site": self.site, "part": self.part, "rows": self.filled, "next": list(next_at)}
        self.part, self.filled = self.part + 1, 0
        self._renew()
        return entry, shard

    def _renew(self) -> None:
        n = self.rows_per_shard
        dtypes = (torch.uint8, torch.int64, torch.int32)
        self.buffer = Batch(
            torch.empty(n, self.d_model, dtype=self.dtype), *(torch.empty(n, dtype=dtype) for dtype in dtypes)
        )


def default_rows(d_model: int, dtype: torch.dtype) -> int:
    """Rows of a shard of about 256 MB, a whole number of blocks."""
    return max(1, SHARD_BYTES // row_bytes(d_model, dtype) // BLOCK_ROWS) * BLOCK_ROWS


def rows_of(
    site: str,
    tokens: TokenValues,
    samples: Int64[Tensor, "batch"],
    keys: list[str],
    dtype: torch.dtype,
    pad: int | None,
) -> Batch:
    """The tokens of a batch as rows in the stored dtype, without padding. Raises ValueError naming site and sample for NaN or infinity."""
    n, n_tokens, d_model = tokens.values.shape
    if n != len(keys) or tokens.kinds.shape != (n, n_tokens):
        raise ValueError(
            f"{site}: values {tuple(tokens.values.shape)} and kinds {tuple(tokens.kinds.shape)} do not fit {len(keys)} samples."
        )
    values = tokens.values.detach().reshape(-1, d_model).cpu()
    kinds = tokens.kinds.reshape(-1).cpu()
    rows = Batch(
        values.to(dtype),
        kinds,
        samples.repeat_interleave(n_tokens),
        torch.arange(n_tokens, dtype=torch.int32).repeat(n),
    )
    if pad is not None and (kinds == pad).any():
        keep = kinds != pad
        values, rows = values[keep], Batch(*(column[keep] for column in rows))
    if not torch.isfinite(rows.values).all():
        bad = int((~torch.isfinite(rows.values)).any(1).nonzero()[0, 0])
        key = keys[int(rows.samples[bad] - samples[0])]
        name = next(name for name, known in DTYPES.items() if known == dtype)
        if torch.isfinite(values[bad]).all():
            raise ValueError(
                f"{site}: activations of sample {key!r} are too large for {name}: extract with --dtype bfloat16 or float32."
            )
        raise ValueError(
            f"{site}: the model gives NaN or infinity for sample {key!r}: check the model's weights and precision."
        )
    return rows


def layout_of(rows: Batch, n_samples: int, grid: tuple[int, int] | None) -> dict[str, Any]:
    """Dimension, grid, and tokens a sample (None where samples of the batch differ)."""
    each, rest = divmod(len(rows.values), n_samples)
    constant = (
        not rest and bool((rows.samples.bincount()[int(rows.samples[0]) :] == each).all()) if len(rows.values) else True
    )
    return {"d_model": rows.values.shape[1], "grid": list(grid) if grid else None, "tokens": each if constant else None}


def store_shard(store: Path, entry: dict[str, Any], rows: Batch) -> dict[str, Any]:
    """Write a shard; returns its journal entry, with size, checksum and the sums of each token kind's values."""
    size, checksum = write_shard(store / site_folder(entry["site"]) / part_name(entry["part"]), rows)
    sums = {}
    for kind in np.unique(rows.kinds.numpy()).tolist():
        of_kind = rows.values if bool((rows.kinds == kind).all()) else rows.values[rows.kinds == kind]
        total = Sums.of(of_kind)
        sums[str(kind)] = [total.count, total.first.tolist(), total.second.tolist()]
    return entry | {"bytes": size, "sha256": checksum, "sums": sums}
