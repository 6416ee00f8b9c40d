"""Segment pooling: one vector for a caption, a sentence, a region or an image, from the rows or the codes of its tokens.

    mean    s[g] = sum of x over the rows of segment g / their number
    max     s[g, j] = max of x_j over the rows of segment g

Every row says which segment it belongs to; -1 is none. A code pools as the dense matrix it stands for, so a latent silent in a row counts there as 0.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae.activations.source import Batch, whole_samples
from vsae.code import Code

How = Literal["mean", "max"]
"""What a segment's rows become; functions take any string, and refuse the others with a sentence."""
Segment = Callable[[Batch], Tensor]
"""Rows -> for each the number of its segment within its sample, int64, -1 for none."""


class Pooled(NamedTuple):
    """One row a segment, in the order of samples and of segments within each."""

    values: Float[Tensor, "segments d"] | Code
    samples: Int[Tensor, "segments"]
    """Row of the store's table of samples."""
    segments: Int[Tensor, "segments"]
    """Number of the segment within its sample."""
    counts: Int[Tensor, "segments"]
    """Rows it was pooled from."""


def pool(
    values: Float[Tensor, "rows d"], segments: Int[Tensor, "rows"], n_segments: int, how: str = "mean"
) -> Float[Tensor, "n_segments d"]:
    """Rows pooled by segment, summed in float32 or wider; 0 for a segment without rows. Raises ValueError for numbers out of range."""
    keep = _inside(segments, n_segments, how)
    values, segments = values[keep], segments[keep]
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    pooled = values.new_zeros(n_segments, values.shape[1])
    if how == "max":
        index = segments[:, None].expand_as(values)
        return pooled.scatter_reduce(0, index, values, "amax", include_self=False)
    counts = segments.bincount(minlength=n_segments).clamp_min(1)
    return pooled.index_add(0, segments, values) / counts[:, None]


def pool_code(code: Code, segments: Int[Tensor, "rows"], n_segments: int, how: str = "mean") -> Code:
    """The same of codes, never dense: [n_segments, as many slots as the widest segment needs]."""
    keep = _inside(segments, n_segments, how)
    segments = segments[keep]
    values, indices = (part[keep] for part in code)
    rows_of = segments.bincount(minlength=n_segments)
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    width = int(indices.max()) + 1 if indices.numel() else 1
    active = values != 0
    owner = segments[:, None].expand_as(indices)[active]
    entries, place = (owner * width + indices[active]).unique(return_inverse=True)
    found = values.new_zeros(len(entries))
    if how == "mean":
        found = found.index_add(0, place, values[active]) / rows_of[entries // width]
    else:
        found = found.scatter_reduce(0, place, values[active], "amax", include_self=False)
        silent = place.bincount(minlength=len(entries)) < rows_of[entries // width]
        found = torch.where(silent, found.clamp_min(0), found)
    owner = entries // width
    slots = owner.bincount(minlength=n_segments)
    slot = torch.arange(len(entries), device=entries.device) - (slots.cumsum(0) - slots)[owner]
    wide = max(int(slots.max()) if n_segments else 0, 1)
    pooled = Code(values.new_zeros(n_segments, wide), indices.new_zeros(n_segments, wide))
    pooled.values[owner, slot], pooled.indices[owner, slot] = found, entries % width
    return pooled


def pooled(
    batches: Iterable[Batch],
    how: str = "mean",
    segment: Segment | None = None,
    encode: Callable[[Tensor], Tensor | Code] | None = None,
) -> Iterator[Pooled]:
    """The segments of a store's rows, as `SiteReader.sequential` gives them, some samples at a time; segments end with their sample.

    segment: None makes each sample one segment: the whole caption or image (choose its tokens by `Select.kinds`). encode: pools codes instead, such
    as `sae.encode`. Segments without a row do not appear. Raises ValueError for rows whose samples are out of order.
    """
    for batch in whole_samples(batches):
        number = batch.samples.new_zeros(len(batch.samples)) if segment is None else segment(batch)
        if number.shape != batch.samples.shape:
            raise ValueError(
                f"the segments are {list(number.shape)} for {len(batch.samples)} rows: give one number a row."
            )
        keep = number >= 0
        if not keep.any():
            continue
        # several segments of one sample may be interleaved, as regions are
        width = int(number.max()) + 1
        names, place = (batch.samples[keep] * width + number[keep]).unique(return_inverse=True)
        values = batch.values[keep] if encode is None else encode(batch.values[keep].float())
        found: Tensor | Code
        if isinstance(values, Code):
            found = pool_code(values, place, len(names), how)
        else:
            found = pool(values, place, len(names), how)
        yield Pooled(found, names // width, names % width, place.bincount())


def from_table(table: Int[Tensor, "samples tokens"]) -> Segment:
    """Segments that are known for every token of every sample, such as regions of a mask."""

    def segment(batch: Batch) -> Tensor:
        return table[batch.samples, batch.positions.long()]

    return segment


def _inside(segments: Int[Tensor, "rows"], n_segments: int, how: str) -> Tensor:
    """Which rows are of a segment."""
    if how not in get_args(How):
        raise ValueError(f"pooling is {how!r}: choose mean or max.")
    if len(segments) and not -1 <= int(segments.min()) <= int(segments.max()) < n_segments:
        raise ValueError(
            f"segments are numbered {int(segments.min())} to {int(segments.max())} where there are {n_segments}: use 0 to {n_segments - 1}, and -1 for none."
        )
    return segments >= 0
