"""What each token of a prompt is: its kind, whether it answers, and which cell of which image it stands for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from modalities.base import KINDS, Tokens


class TokenLayout(NamedTuple):
    """Row i, column j is the token that `Activations` of a language site hold at [i, j]."""

    ids: Int[Tensor, "batch tokens"]
    """Id in the model's vocabulary; -1 where a row was filled up."""
    kinds: UInt8[Tensor, "batch tokens"]
    """Index into `KINDS`. A newline mark between the rows of an image is `special`."""
    answer: Bool[Tensor, "batch tokens"]
    """Whether the token is of what the assistant says; all else is prompt."""
    image: Int[Tensor, "batch tokens"]
    """Which image of its prompt the token stands for, from 0; -1 for none."""
    copy: Int[Tensor, "batch tokens"]
    """0: the image as a whole. 1: the same image in finer tiles, put together to one grid (LLaVA-NeXT). -1: none."""
    row: Int[Tensor, "batch tokens"]
    column: Int[Tensor, "batch tokens"]
    """Cell in the grid of that copy, which covers the whole image. -1 where the token is no cell."""
    position: Int[Tensor, "batch tokens"]
    """Place in its own sample, from 0, whatever padding or other samples are before it; -1 for filling."""


MARKS = TokenLayout._fields[1:-1]
"""Tensors of a batch that tell what its tokens are, under these names: not for the model."""

NO_CELL = -1


def text_kinds(
    ids: Int[Tensor, "rows length"],
    mask: Int[Tensor, "rows length"] | Bool[Tensor, "rows length"],
    special: Sequence[int],
) -> UInt8[Tensor, "rows length"]:
    """`pad` where the mask is 0, `special` for these ids, else `text`. Padding often has the id of a special token."""
    kinds = torch.full_like(ids, KINDS.index("text"), dtype=torch.uint8)
    kinds[torch.isin(ids, torch.tensor(list(special), dtype=ids.dtype, device=ids.device))] = KINDS.index("special")
    kinds[mask == 0] = KINDS.index("pad")
    return kinds


def kinds_of(ids: Int[Tensor, "batch length"], tokenizer: Any) -> UInt8[Tensor, "batch length"]:
    """Kind of each token id: `special` for the marks of begin and end, `pad` for the filling behind them, else `text`.

    Told from the ids alone, since text encoders seldom get a mask: the filling is the run of padding ids at the end of a row, less the end
    mark where that is what fills (SD 1, SigLIP).
    """
    filler = tokenizer.pad_token_id
    special = set(special_ids(tokenizer))
    if filler is not None and filler not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        special.discard(filler)  # SD 2 and SDXL fill with "!", which is a word too
    kinds = torch.full_like(ids, KINDS.index("text"), dtype=torch.uint8)
    kinds[torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype, device=ids.device))] = KINDS.index("special")
    if filler is not None:
        pad = (ids == filler).flip(1).cumprod(1).flip(1).bool()
        if filler == tokenizer.eos_token_id:
            pad &= pad.cumsum(1) > 1
        kinds[pad] = KINDS.index("pad")
    return kinds


def special_ids(tokenizer: Any) -> list[int]:
    """Ids that a tokenizer calls special: marks of begin, end, roles and images, not words."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return sorted({*tokenizer.all_special_ids, *added})


def padded(rows: Sequence[Tensor], side: str, value: int | float | bool) -> Tensor:
    """Rows [length] of different lengths as one tensor [rows, longest], filled up on one side."""
    longest = max(len(row) for row in rows)
    whole = torch.full((len(rows), longest), value, dtype=rows[0].dtype)
    for number, row in enumerate(rows):
        start = longest - len(row) if side == "left" else 0
        whole[number, start : start + len(row)] = row
    return whole


def positions(mask: Int[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """Positions that count from the first token of each row, whatever padding is before it; as `generate` makes them."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def places(kinds: UInt8[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """Place of each token in its row, counted from the first that is no padding; -1 for padding."""
    pad = kinds == KINDS.index("pad")
    lead = pad.long().cumprod(1).sum(1, keepdim=True)
    return (torch.arange(kinds.shape[1], device=kinds.device) - lead).masked_fill(pad, -1)


def gathered(flat: Tensor, index: Int[Tensor, "batch tokens"], fill: Any) -> Tensor:
    """`flat[index]`, with `fill` where the index is -1. flat: [all, ...]."""
    found = flat[index.clamp(min=0)]
    found[index < 0] = fill
    return found


def regrouped(tokens: Tokens, index: Int[Tensor, "batch tokens"]) -> Tokens:
    """The same tokens in other rows. index: into all tokens, row after row; -1 for a place to be filled up (`pad`).

    Tokens that are nowhere in the index are out of an edit's reach.
    """
    shape = tokens.values.shape
    index = index.to(tokens.values.device)
    if index.shape == shape[:2] and bool((index.flatten() == torch.arange(index.numel(), device=index.device)).all()):
        return tokens
    flat, there = tokens.values.flatten(0, 1), index >= 0

    def restore(new: Tensor) -> Tensor:
        whole = flat.clone()
        whole[index[there]] = new[there].to(whole.dtype)
        return tokens.restore(whole.view(shape))

    kinds = gathered(tokens.kinds.flatten(), index, KINDS.index("pad"))
    return Tokens(gathered(flat, index, 0), kinds, tokens.grid, restore)


def rows_of_counts(counts: Sequence[Sequence[int]]) -> Int[Tensor, "batch tokens"]:
    """Index for `regrouped`: the tokens lie one after the other, in the order of `counts`, and each list in it becomes a row."""
    rows, start = [], 0
    for row in counts:
        rows.append(torch.arange(start, start + sum(row)))
        start += sum(row)
    return padded(rows, "right", -1)
