"""Recipes whose decoder is a polynomial of the code."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vsae import ops
from vsae.dictionaries import Dictionary
from vsae.polynomial import Polynomial
from vsae.recipes.base import START_ROWS, Recipe
from vsae.recipes.selection import TopK
from vsae.sae import SAE

START = 0.3
"""Root mean square of a = z U before training."""


@dataclass(frozen=True)
class PolySAE(TopK):
    """TopK with a polynomial decoder (PolySAE, 2602.01322): x_hat = a C1^T + l2 a^2 C2^T + l3 a^3 C3^T, a = z U with orthonormal columns.

    The paper: 16,384 latents, k = 64; ranks 768, 64, 64 for GPT-2 and 1024, 128, 128 for Pythia-410M. AuxK is of the linear parts (ours).
    Tools that take an atom for a latent's whole effect refuse it.
    """

    name: ClassVar[str] = "poly"

    rank: int | None = None
    """Rank of the linear part; d_model when left out, or n_latents where that is less."""

    rank2: int = 64
    """Rank of the squares; no more than the first."""

    rank3: int = 64
    """Rank of the cubes; no more than the first."""

    def dictionary(
        self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int
    ) -> Dictionary:
        d_model = sample.shape[1]
        rank = self.rank or min(d_model, self.n_latents)
        ranks = rank, min(self.rank2, rank), min(self.rank3, rank)
        return Polynomial.start(self.n_latents, d_model, ranks, seed).to(sample)

    def build(self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int) -> SAE:
        """Ours: a starts at one size whatever the activations' units are, and the C_k make up for it, so that squares and cubes start small beside it."""
        sae = super().build(sample, mean, seed)
        assert isinstance(sae.dictionary, Polynomial)
        with torch.no_grad():
            size = ops.decode(sae.encode(sample[:START_ROWS]), sae.dictionary.U).square().mean().sqrt() / START
            sae.encoder.get_parameter("weight").div_(size)
            for each in (sae.dictionary.C1, sae.dictionary.C2, sae.dictionary.C3):
                each.mul_(size)
        return sae


RECIPES: tuple[type[Recipe], ...] = (PolySAE,)
