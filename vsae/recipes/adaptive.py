"""Recipes that keep another number of latents for every row."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.dictionaries import Dictionary
from vsae.encoders import Linear
from vsae.objectives import Objective, Seen, Weighted
from vsae.recipes.base import Recipe
from vsae.sparsifiers import norms


class Unfolded(Linear):
    """A linear encoder whose x stays in the units of training: for rules that look at x as well as at u."""

    def fold(self, scale: Float[Tensor, "d_model"], dictionary: Dictionary) -> None:
        return None


@dataclass(frozen=True)
class TopAFA(Recipe):
    """As many latents for a token as make its code as long as the token (Lee et al. 2025, 2503.24277): no k to choose. See vsae.sparsifiers.norms.

    Unlike the authors' code it has an encoder bias (which starts at 0) and the normalisation of all vsae runs, not one a token.
    """

    name: ClassVar[str] = "top_afa"

    afa_coefficient: float = field(default=0.0, kw_only=True)
    """Weight of the authors' afa loss, which draws |z| to |x - b_dec|; 0 switches it off, as they do."""

    def sparsifier(self) -> norms.TopAFA:
        return norms.TopAFA()

    def encoder(self, dictionary: Dictionary, sample: Float[Tensor, "rows d_model"], seed: int) -> Unfolded:
        start = super().encoder(dictionary, sample, seed)
        assert isinstance(start, Linear)
        return Unfolded(start.weight, start.bias)

    def objective(self) -> Objective:
        return Objective({"afa": Weighted(afa, self.afa_coefficient)} | super().objective().terms)


def afa(seen: Seen) -> Float[Tensor, ""]:
    """(|z| - |x - b_dec|)^2 summed over the batch, over the data's variance."""
    length = torch.linalg.vector_norm(seen.x - seen.sae.b_dec, dim=1)
    squared = seen.output.code.values.square().sum(1)
    short = squared <= 0  # the root's gradient is infinite at 0
    z = torch.where(short, 0, torch.where(short, 1, squared).sqrt())
    return (z - length).square().sum() / seen.energy


RECIPES = (TopAFA,)
