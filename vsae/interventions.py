"""Edit what a model computes through an SAE at a site, keeping what the SAE does not explain.

    x' = x + strength * (z' - z) D        z = encode(x), z' = the operation's; the error x - decode(z) stays in x'

so an edit that changes no code (or strength 0) leaves x as it is, to the bit, and one that changes latent i moves x along atom i alone.
The plain baseline to beat is a direction: x' = x + strength * v, v = mean(x with the concept) - mean(x without).

    edit = Intervention(run.sae, Clamp([42], 5.0), where=Where(kinds=("patch",)), kind_names=KINDS)
    with model.edit("blocks.11", edit):
        model.run(batch)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vsae.code import Code
from vsae.sae import SAE, require


@runtime_checkable
class Operation(Protocol):
    """Which latents, and what becomes of them."""

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        """(z' - z) D of each row."""


@dataclass(frozen=True)
class Clamp:
    """Set the latents to `value` (one for all, or one each) wherever the edit applies, whether they fired or not."""

    latents: Sequence[int]
    value: float | Sequence[float]

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        z = activations(sae, code, self.latents)
        return (z.new_tensor(self.value) - z) @ atoms(sae, self.latents)


@dataclass(frozen=True)
class Add:
    """Add `value` (one for all, or one each) to the latents, whether they fired or not."""

    latents: Sequence[int]
    value: float | Sequence[float]

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        rows = atoms(sae, self.latents)
        value = rows.new_tensor(self.value).expand(len(rows))
        return (value @ rows).expand(len(code.values), -1)


@dataclass(frozen=True)
class Scale:
    """Multiply the latents by `factor`: 0 ablates, 1 changes nothing; where they are silent they stay so."""

    latents: Sequence[int]
    factor: float

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        return (self.factor - 1) * activations(sae, code, self.latents) @ atoms(sae, self.latents)


def Ablate(latents: Sequence[int]) -> Scale:
    """Silence the latents."""
    return Scale(latents, 0.0)


@dataclass(frozen=True)
class KeepOnly:
    """Silence every latent but these. The bias and the reconstruction error stay."""

    latents: Sequence[int]

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        require(sae, linear_decoder=True, for_="keeping some latents only")
        kept = torch.isin(code.indices, on(code, checked(sae, self.latents)))
        return sae.bias - sae.decode(Code(code.values.masked_fill(kept, 0), code.indices))


@dataclass(frozen=True)
class Swap:
    """Give the latents (None: all) the values they have in `other`, the code of another input with as many rows."""

    other: Code
    latents: Sequence[int] | None = None

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        if len(self.other.values) != len(code.values):
            raise ValueError(
                f"codes can only be swapped row by row: the other input has {len(self.other.values)} rows, this one {len(code.values)}."
            )
        if self.latents is None:
            return sae.decode(self.other) - sae.decode(code)
        mine, theirs = (activations(sae, each, self.latents) for each in (code, self.other))
        return (theirs - mine) @ atoms(sae, self.latents)


@runtime_checkable
class Layout(Protocol):
    """What a language or image-text model tells of the tokens that pass a site: `modalities.layout.TokenLayout`."""

    position: Int[Tensor, "batch tokens"]
    image: Int[Tensor, "batch tokens"]
    copy: Int[Tensor, "batch tokens"]
    row: Int[Tensor, "batch tokens"]
    column: Int[Tensor, "batch tokens"]
    answer: Bool[Tensor, "batch tokens"]


@dataclass(frozen=True)
class Where:
    """Which tokens an edit reaches; None means all.

    positions: places in a sample, from 0, whatever padding is before it; a generated token's is where it stands behind its prompt.
    cells: (row, column) of the patch grid: of every image and copy where the model tells its layout; else counted over the tokens of kind
        `patch` or `image`, of the row's first image.
    skip: leaves the first so many tokens of a sample alone, whatever padding is before them: those that an SAE was trained without (`Run.skip`).
    images, copies, answer: of a language site: which images of the prompt, from 0; which copies of them (0: whole, 1: in tiles); True: what the
        assistant says, False: all else.
    """

    kinds: tuple[str, ...] | None = None
    positions: tuple[int, ...] | None = None
    cells: tuple[tuple[int, int], ...] | None = None
    images: tuple[int, ...] | None = None
    copies: tuple[int, ...] | None = None
    answer: bool | None = None
    skip: int = 0

    def mask(
        self,
        kinds: UInt8[Tensor, "batch tokens"],
        kind_names: Sequence[str],
        columns: int | None,
        layout: Layout | None = None,
    ) -> Bool[Tensor, "batch tokens"]:
        """Raises ValueError for a kind that does not exist, for cells without a grid, and for images or answers where no layout is known."""
        mask = torch.ones_like(kinds, dtype=torch.bool)
        if self.kinds is not None:
            mask &= of_kinds(kinds, kind_names, self.kinds)
        if self.positions is not None or self.skip:
            place = placed(kinds, kind_names) if layout is None else layout.position
            mask &= place >= self.skip
            if self.positions is not None:
                mask &= among(place, self.positions)
        if layout is None:
            if (self.images, self.copies, self.answer) != (None, None, None):
                raise ValueError(
                    "which image, copy or answer a token is of is known at the layers of a language model only: choose a site there."
                )
        else:
            if self.images is not None:
                mask &= among(layout.image, self.images)
            if self.copies is not None:
                mask &= among(layout.copy, self.copies)
            if self.answer is not None:
                mask &= layout.answer == self.answer
        if self.cells is not None and layout is not None:
            of_cell = [(layout.row == row) & (layout.column == column) for row, column in self.cells]
            mask &= torch.stack(of_cell).any(0) if of_cell else False
        elif self.cells is not None:
            if columns is None:
                raise ValueError(
                    "cells were given, but not how many columns the grid has: pass columns= of the site's grid."
                )
            painted = of_kinds(kinds, kind_names, [name for name in ("patch", "image") if name in kind_names])
            wanted = [row * columns + column for row, column in self.cells]
            mask &= painted & among(painted.cumsum(1) - 1, wanted)
        return mask


class Intervention:
    """A function for `model.edit(site, ...)`. `strength` scales the change; tokens outside `where` are not touched."""

    def __init__(
        self,
        sae: SAE,
        operation: Operation,
        *,
        strength: float = 1.0,
        where: Where | None = None,
        kind_names: Sequence[str] = (),
        columns: int | None = None,
    ) -> None:
        self.sae, self.operation, self.strength = sae, operation, strength
        self.where, self.kind_names, self.columns = where or Where(), tuple(kind_names), columns

    @torch.no_grad()
    def __call__(
        self,
        values: Float[Tensor, "batch tokens d_model"],
        kinds: UInt8[Tensor, "batch tokens"],
        layout: Layout | None = None,
    ) -> Float[Tensor, "batch tokens d_model"]:
        if values.shape[-1] != self.sae.d_model:
            raise ValueError(
                f"the site has {values.shape[-1]} dimensions, but the SAE reads {self.sae.d_model}: choose its own site."
            )
        mask = self.where.mask(kinds, self.kind_names, self.columns, layout)
        x = values[mask].to(self.sae.b_dec.dtype)
        return moved(values, mask, self.strength * self.operation.change(self.sae, self.sae.encode(x)))


class Direction:
    """The baseline: add `strength * direction` to each token that `where` names."""

    def __init__(
        self,
        direction: Float[Tensor, "d_model"],
        strength: float = 1.0,
        where: Where | None = None,
        kind_names: Sequence[str] = (),
        columns: int | None = None,
    ) -> None:
        self.direction, self.strength = direction, strength
        self.where, self.kind_names, self.columns = where or Where(), tuple(kind_names), columns

    def __call__(
        self,
        values: Float[Tensor, "batch tokens d_model"],
        kinds: UInt8[Tensor, "batch tokens"],
        layout: Layout | None = None,
    ) -> Float[Tensor, "batch tokens d_model"]:
        mask = self.where.mask(kinds, self.kind_names, self.columns, layout)
        return moved(values, mask, (self.strength * self.direction).expand(int(mask.sum()), -1))


def difference_of_means(
    having: Float[Tensor, "n d_model"], lacking: Float[Tensor, "m d_model"]
) -> Float[Tensor, "d_model"]:
    """Mean activation with a concept less the mean without it, in float64 and given in the inputs' dtype. Raises ValueError for an empty side."""
    if not len(having) or not len(lacking):
        raise ValueError("a difference of means needs activations with the concept and without it: one side is empty.")
    return (having.double().mean(0) - lacking.double().mean(0)).to(having.dtype)


def moved(
    values: Float[Tensor, "batch tokens d_model"],
    mask: Bool[Tensor, "batch tokens"],
    change: Float[Tensor, "rows d_model"],
) -> Float[Tensor, "batch tokens d_model"]:
    """`values` with `change` added to the masked tokens. A change of zero leaves even the sign of a zero alone."""
    out, old, change = values.clone(), values[mask], change.to(values)
    out[mask] = torch.where(change == 0, old, old + change)
    return out


def activations(sae: SAE, code: Code, latents: Sequence[int]) -> Float[Tensor, "rows latents"]:
    """The code at these latents, 0 where they are silent."""
    wanted = on(code, checked(sae, latents))
    return torch.stack([(code.values * (code.indices == latent)).sum(1) for latent in wanted], 1)


def atoms(sae: SAE, latents: Sequence[int]) -> Float[Tensor, "latents d_model"]:
    require(sae, linear_decoder=True, for_="an edit along atoms")
    return sae.atoms[checked(sae, latents).to(sae.b_dec.device)]


def checked(sae: SAE, latents: Sequence[int]) -> Int[Tensor, "latents"]:
    """Raises ValueError for a latent that the SAE does not have, none at all, or the same one twice."""
    if (
        not len(latents)
        or len(set(latents)) != len(latents)
        or not all(0 <= latent < sae.n_latents for latent in latents)
    ):
        raise ValueError(f"latents are {list(latents)}: name at least one, each once, from 0 to {sae.n_latents - 1}.")
    return torch.tensor(list(latents))


def on(code: Code, latents: Int[Tensor, "latents"]) -> Int[Tensor, "latents"]:
    return latents.to(code.indices.device)


def among(numbers: Int[Tensor, "batch tokens"], wanted: Sequence[int]) -> Bool[Tensor, "batch tokens"]:
    return torch.isin(numbers, torch.tensor(list(wanted), dtype=numbers.dtype, device=numbers.device))


def placed(kinds: UInt8[Tensor, "batch tokens"], kind_names: Sequence[str]) -> Int[Tensor, "batch tokens"]:
    """Place of each token in its row, less the padding before the first."""
    at = torch.arange(kinds.shape[1], device=kinds.device).expand(kinds.shape)
    if "pad" not in kind_names:
        return at
    return at - (kinds == kind_names.index("pad")).long().cumprod(1).sum(1, keepdim=True)


def of_kinds(
    kinds: UInt8[Tensor, "batch tokens"], kind_names: Sequence[str], wanted: Sequence[str]
) -> Bool[Tensor, "batch tokens"]:
    if unknown := [name for name in wanted if name not in kind_names]:
        raise ValueError(
            f"token kind '{unknown[0]}' does not exist: choose from {', '.join(kind_names) or 'those given as kind_names'}."
        )
    return torch.isin(
        kinds, torch.tensor([kind_names.index(name) for name in wanted], dtype=torch.uint8, device=kinds.device)
    )
