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
    """Set the latents to `value` wherever the edit applies, whether they fired or not."""

    latents: Sequence[int]
    value: float

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        z = activations(sae, code, self.latents)
        return (self.value - z) @ atoms(sae, self.latents)


@dataclass(frozen=True)
class Add:
    """Add `value` to the latents, whether they fired or not."""

    latents: Sequence[int]
    value: float

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        step = self.value * atoms(sae, self.latents).sum(0)
        return step.expand(len(code.values), -1)


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


@dataclass(frozen=True)
class Where:
    """Which tokens an edit reaches; None means all. Cells are (row, column) of the patch grid, counted over the tokens of kind `patch` or `image`."""

    kinds: tuple[str, ...] | None = None
    positions: tuple[int, ...] | None = None
    cells: tuple[tuple[int, int], ...] | None = None

    def mask(
        self, kinds: UInt8[Tensor, "batch tokens"], kind_names: Sequence[str], columns: int | None
    ) -> Bool[Tensor, "batch tokens"]:
        """Raises ValueError for a kind that does not exist, or for cells without a grid."""
        mask = torch.ones_like(kinds, dtype=torch.bool)
        if self.kinds is not None:
            mask &= of_kinds(kinds, kind_names, self.kinds)
        if self.positions is not None:
            at = torch.arange(kinds.shape[1], device=kinds.device)
            mask &= torch.isin(at, torch.tensor(self.positions, device=kinds.device))
        if self.cells is not None:
            if columns is None:
                raise ValueError(
                    "cells were given, but not how many columns the grid has: pass columns= of the site's grid."
                )
            painted = of_kinds(kinds, kind_names, [name for name in ("patch", "image") if name in kind_names])
            wanted = torch.tensor([row * columns + column for row, column in self.cells], device=kinds.device)
            mask &= painted & torch.isin(painted.cumsum(1) - 1, wanted)
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
        self, values: Float[Tensor, "batch tokens d_model"], kinds: UInt8[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens d_model"]:
        if values.shape[-1] != self.sae.d_model:
            raise ValueError(
                f"the site has {values.shape[-1]} dimensions, but the SAE reads {self.sae.d_model}: choose its own site."
            )
        mask = self.where.mask(kinds, self.kind_names, self.columns)
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
        self, values: Float[Tensor, "batch tokens d_model"], kinds: UInt8[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens d_model"]:
        mask = self.where.mask(kinds, self.kind_names, self.columns)
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
