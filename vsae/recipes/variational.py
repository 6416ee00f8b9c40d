"""Recipes whose code is drawn from a posterior."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vsae.dictionaries import Dictionary
from vsae.objectives import Objective, Weighted
from vsae.recipes.base import Recipe
from vsae.recipes.selection import TopK
from vsae.variational import Variational, kl


@dataclass(frozen=True)
class VSAE(TopK):
    """TopK of pre-activations with Gaussian noise, and KL to N(0, 1) with a rising weight (vSAE, 2509.22994); after training their means alone.

    The form follows the abstract and its authors' report; the values of beta and of the warm-up are ours. Reported to lose against TopK: see
    `vsae.variational.collapse`.
    """

    name: ClassVar[str] = "vsae"

    auxk_coefficient: float = field(default=0.0, kw_only=True)
    """Weight of the auxiliary loss that revives dead latents; 0 switches it off, as published."""

    kl_coefficient: float = 0.01
    """beta: weight of the KL divergence against the squared error, both summed over a row."""

    kl_warmup: float = 0.2
    """Share of the budget over which beta rises from 0."""

    learn_variance: bool = False
    """Learn sigma of each latent as a function of x; otherwise it is 1."""

    def encoder(self, dictionary: Dictionary, sample: Float[Tensor, "rows d_model"], seed: int) -> Variational:
        atoms = F.normalize(dictionary().detach(), dim=1)
        bias = atoms.new_zeros(len(atoms))
        more = (torch.zeros_like(atoms), bias) if self.learn_variance else (None, None)
        return Variational(atoms, bias, *more)

    def objective(self) -> Objective:
        return Objective(super().objective().terms | {"kl": Weighted(kl, self.kl_coefficient, self.kl_warmup)})


RECIPES: tuple[type[Recipe], ...] = (VSAE,)
