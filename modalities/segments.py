"""Which segment a token belongs to: the sentence of a text, the region of a mask, or the whole sample; and pooling by it at extraction.

stream(..., pool=Pool("mean", "sentence"))      a store with one row a sentence, whose position is the sentence's number
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from modalities.base import KINDS, Activations, Batch
from modalities.data.view import view
from modalities.several import Several

How = Literal["mean", "max", "last"]
By = Literal["sample", "caption", "image", "sentence", "region"]
CONTENT = ("patch", "image", "text")
"""Kinds that are pooled: not class tokens, registers, marks and padding, but where a site has nothing else (pooled vectors)."""
ENDS = re.compile(r"[.!?…。！？][\"'”’)\]]*\s*$")


@dataclass(frozen=True)
class Pool:
    """One token a segment in place of all. how: "last" is its last token, the boundary of a step of reasoning (RISE, 2512.23988).

    by: "sample" (all its patches and words), "caption" (its words alone), "image" (each of its images), "sentence" (text), "region" (patches, by mask).
    """

    how: str
    by: str = "sample"

    def __post_init__(self) -> None:
        if self.how not in get_args(How) or self.by not in get_args(By):
            raise ValueError(
                f"pooling is {self.how!r} by {self.by!r}: choose mean, max or last, by {', '.join(get_args(By))}."
            )

    def __call__(self, model: Any, samples: Sequence[Any], batch: Batch, site: str, found: Activations) -> Activations:
        """[samples, segments, d_model] of kind `cls`, `pad` where a sample has fewer. Raises ValueError for a site the segments are not of."""
        if isinstance(model, Several):
            model, batch, site = model.of_site(site, batch)
        if self.by == "sentence":
            segments = sentences(model, batch, site, found)
        elif self.by == "region":
            segments = torch.stack(
                [regions(sample, found, site, model.provenance["preprocessing"]) for sample in samples]
            )
        elif self.by == "image":
            segments = images(model, batch, found)
        else:
            segments = whole(found) if self.by == "sample" else of_kinds(found, ("text",))
        return reduced(found, segments.to(found.values.device), self.how)


def reduced(found: Activations, segments: Int[Tensor, "batch tokens"], how: str) -> Activations:
    """Tokens pooled by segment (-1: none). The number of segments is the batch's largest; those without a token are `pad`."""
    n = max(int(segments.max()) + 1, 1)
    there = segments >= 0
    index = segments.clamp(min=0)
    counts = torch.zeros(len(segments), n, dtype=torch.long, device=segments.device).scatter_add_(
        1, index, there.long()
    )
    values = found.values.float()
    wide = index[..., None].expand_as(values)
    pooled = values.new_zeros(len(values), n, values.shape[2])
    if how == "mean":
        pooled = pooled.scatter_add(1, wide, values * there[..., None]) / counts.clamp(min=1)[..., None]
    elif how == "last":
        place = torch.arange(values.shape[1], device=values.device).expand_as(segments)
        last = torch.zeros_like(counts).scatter_reduce(1, index, torch.where(there, place, 0), "amax")
        pooled = values.gather(1, last[..., None].expand_as(pooled)).masked_fill(counts[..., None] == 0, 0)
    else:
        lowest = values.masked_fill(~there[..., None], -torch.inf)
        pooled = torch.full_like(pooled, -torch.inf).scatter_reduce(1, wide, lowest, "amax")
        pooled = pooled.masked_fill(counts[..., None] == 0, 0)
    kinds = torch.where(counts > 0, KINDS.index("cls"), KINDS.index("pad")).to(torch.uint8)
    return Activations(pooled, kinds, None)


def whole(found: Activations) -> Int[Tensor, "batch tokens"]:
    """Segment 0 for each sample's content; for all it has but padding where it has no content."""
    content = torch.isin(found.kinds, _ids(CONTENT, found))
    content |= ~content.any(1, keepdim=True) & (found.kinds != KINDS.index("pad"))
    return torch.where(content, 0, -1)


def of_kinds(found: Activations, kinds: Sequence[str]) -> Int[Tensor, "batch tokens"]:
    """Segment 0 for each sample's tokens of these kinds; a sample without any has none."""
    return torch.where(torch.isin(found.kinds, _ids(kinds, found)), 0, -1)


def images(model: Any, batch: Batch, found: Activations) -> Int[Tensor, "batch tokens"]:
    """The number of the image of each image token, where a prompt may have several; else 0."""
    segments = of_kinds(found, ("patch", "image"))
    layout = model.layout(batch) if hasattr(model, "layout") else None
    if layout is None or not torch.equal(layout.kinds.cpu(), found.kinds.cpu()):
        return segments
    return torch.where(segments >= 0, layout.image.to(segments.device), -1)


def sentences(model: Any, batch: Batch, site: str, found: Activations) -> Int[Tensor, "batch tokens"]:
    """The number of the sentence of each text token: one ends with the token that ends in . ! ? or a line break."""
    ids = model.layout(batch).ids if hasattr(model, "layout") else batch.get("text")
    if ids is None or ids.shape != found.kinds.shape:
        raise ValueError(f"site {site!r} holds no tokens of text: sentences are of a text's layers.")
    tokenizer = getattr(model.tokenizer, "tokenizer", model.tokenizer)
    text, rows = KINDS.index("text"), []
    piece = {number: tokenizer.decode([number]) for number in ids[found.kinds == text].unique().tolist()}
    for row, kinds in zip(ids.tolist(), found.kinds.tolist(), strict=True):
        pieces = [piece[number] if kind == text else None for number, kind in zip(row, kinds, strict=True)]
        rows.append(numbered(pieces))
    return torch.tensor(rows)


def numbered(pieces: Sequence[str | None]) -> list[int]:
    """The sentence of each piece of a text, from 0; -1 where there is no piece. Marks that follow an end belong to it: "Who?!"."""
    found, number, ended = [], 0, False
    for piece in pieces:
        if piece is None:
            found.append(-1)
            continue
        if ended and piece.strip(" .!?…\"'”’)]\n"):
            number, ended = number + 1, False
        found.append(number)
        ended = ended or "\n" in piece or ENDS.search(piece) is not None
    return found


def regions(sample: Any, found: Activations, site: str, preprocessing: dict[str, Any]) -> Int[Tensor, "tokens"]:
    """For each patch the most frequent value of the sample's mask under it (the smaller of equals), seen through the model's preprocessing.

    Raises ValueError for a sample without a mask, and a site without a grid.
    """
    if sample.mask is None:
        raise ValueError(f"sample {sample.key!r} has no mask: regions are of data with masks.")
    if found.grid is None:
        raise ValueError(f"site {site!r} has no grid of patches: regions are of an image's layers.")
    patches, here = torch.full((found.kinds.shape[1],), -1), (found.kinds[0] == KINDS.index("patch")).cpu()
    if int(here.sum()) != found.grid[0] * found.grid[1]:
        raise ValueError(
            f"site {site!r} has not the patches of one image in each sample: regions are of an image's layers."
        )
    patches[here] = majority(sample.mask, found.grid, preprocessing).flatten()
    return patches


def majority(mask: Image.Image, grid: tuple[int, int], preprocessing: dict[str, Any]) -> Int[Tensor, "rows columns"]:
    """The most frequent class in each cell of the grid; where the crop is larger than the image, there is none (-1)."""
    kinds, counts = votes(mask, grid, preprocessing)
    return torch.from_numpy(kinds[counts.argmax(1)].reshape(grid))


def votes(
    mask: Image.Image, grid: tuple[int, int], preprocessing: dict[str, Any]
) -> tuple[Int[np.ndarray, "kinds"], Int[np.ndarray, "cells kinds"]]:
    """(classes in ascending order, pixels of each in each cell of the grid), seen through the model's preprocessing; -1 is beside the image."""
    # classes are moved up by one, so that what the crop pads with is told apart
    classes = Image.fromarray(
        np.asarray(mask.convert("I") if mask.mode not in ("L", "P", "I") else mask).astype(np.int32) + 1, "I"
    )
    seen = np.asarray(view(classes, dict(preprocessing) | {"interpolation": "nearest", "fill": 0})).astype(np.int64) - 1
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(seen.shape, grid, strict=True))
    cell = (rows[:, None] * grid[1] + columns).ravel()
    kinds, place = np.unique(seen.ravel(), return_inverse=True)
    counts = np.zeros((grid[0] * grid[1], len(kinds)), np.int64)
    np.add.at(counts, (cell, place.ravel()), 1)
    return kinds, counts


def _ids(kinds: Sequence[str], found: Activations) -> Tensor:
    return torch.tensor([KINDS.index(kind) for kind in kinds], dtype=torch.uint8, device=found.kinds.device)
