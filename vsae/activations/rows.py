"""A chunk as the rows that a store keeps and the line that its journal keeps: what is done to a batch before anyone knows where its rows go."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from vsae.activations.chunk import Chunk, TokenValues
from vsae.activations.shard import DTYPES
from vsae.activations.source import Batch

FIELDS = ("key", "path", "caption", "label", "width", "height")


class Reading(NamedTuple):
    """A batch read: its journal line, and by site its rows, whose samples are numbered from 0."""

    entry: dict[str, Any]
    rows: dict[str, Batch]

    @property
    def counts(self) -> dict[str, int]:
        """Rows by site."""
        return {site: len(rows.values) for site, rows in self.rows.items()}

    @staticmethod
    def of(chunk: Chunk, job: Mapping[str, Any]) -> "Reading":
        """Raises ValueError for values that are not finite in the dtype of the store, or do not fit their samples."""
        names = job["kind_names"]
        pad = names.index("pad") if "pad" in names else None
        samples = [_sample_row(row) for row in chunk.samples]
        keys, index = [row["key"] for row in samples], torch.arange(len(samples))
        rows = {
            site: rows_of(site, tokens, index, keys, DTYPES[job["dtype"]], pad, job["keep_pad"])
            for site, tokens in (chunk.activations.items() if samples else ())
        }
        entry = {
            "batch": chunk.batch,
            "samples": samples,
            "bad": [{name: _text(getattr(bad, name)) for name in ("key", "path", "reason")} for bad in chunk.bad],
            "sites": {site: layout_of(rows[site], len(samples), chunk.activations[site].grid) for site in rows},
        }
        return Reading(entry, rows)


def readings(chunks: Iterable[Chunk], job: Mapping[str, Any]) -> Iterator[Reading]:
    """Each chunk read; closing this closes the chunks."""
    try:
        for chunk in chunks:
            yield Reading.of(chunk, job)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()


def rows_of(
    site: str,
    tokens: TokenValues,
    samples: Int64[Tensor, "batch"],
    keys: list[str],
    dtype: torch.dtype,
    pad: int | None,
    keep_pad: bool,
) -> Batch:
    """The tokens of a batch as rows in the stored dtype. Raises ValueError naming site and sample for NaN or infinity.

    A position counts from the first token that is no padding (`pad` is that kind), so that a sample has the same ones whatever it was batched
    with; padding before it, where it is kept, has negative ones.
    """
    n, n_tokens, d_model = tokens.values.shape
    if n != len(keys) or tokens.kinds.shape != (n, n_tokens):
        raise ValueError(
            f"{site}: values {tuple(tokens.values.shape)} and kinds {tuple(tokens.kinds.shape)} do not fit {len(keys)} samples."
        )
    values = tokens.values.detach().reshape(-1, d_model).cpu()
    kinds, positions = tokens.kinds.cpu(), torch.arange(n_tokens, dtype=torch.int32).expand(n, -1)
    if pad is not None:
        positions = positions - (kinds == pad).int().cumprod(1).sum(1, keepdim=True, dtype=torch.int32)
    kinds = kinds.reshape(-1)
    rows = Batch(values.to(dtype), kinds, samples.repeat_interleave(n_tokens), positions.reshape(-1))
    if pad is not None and not keep_pad and (kinds == pad).any():
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


def _sample_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The six columns of a sample; file names that are not UTF-8 are spelled with backslashes."""
    text = {name: None if row.get(name) is None else _text(row[name]) for name in FIELDS[:4]}
    return text | {name: None if row.get(name) is None else int(row[name]) for name in FIELDS[4:]}


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
