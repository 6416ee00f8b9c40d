"""Recipes whose latents choose their rows."""

from dataclasses import dataclass
from typing import ClassVar

from vsae import sparsifiers
from vsae.controllers import Controller
from vsae.objectives import Objective, Weighted, ZipfAux
from vsae.recipes.base import Recipe
from vsae.recipes.selection import BatchTopK
from vsae.sparsifiers.columns import ZipfBudgets


@dataclass(frozen=True)
class FeatureChoice(BatchTopK):
    """Every latent chooses the tokens of a batch that it speaks for (Ayonrinde 2024, 2411.02124); see vsae.sparsifiers.columns. BatchTopK is its Mutual Choice.

    AuxK is made of the latents that fire less than half as often as their budget's law says (the paper's zipf-aux; the half is ours).
    """

    name: ClassVar[str] = "feature_choice"

    zipf_exponent: float = 0.0
    """Budgets fall as 1 / (i + 1)^s over latents; 0: all alike."""

    mutual_steps: int = 0
    """Steps of Mutual Choice first, after which budgets follow the power law of how often each latent spoke, in place of `zipf_exponent`. 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.zipf_exponent >= 0:
            raise ValueError(f"zipf_exponent is {self.zipf_exponent}: choose 0 or more.")
        if self.mutual_steps < 0:
            raise ValueError(f"mutual_steps is {self.mutual_steps}: choose 0 (Feature Choice from the start) or more.")

    def sparsifier(self) -> sparsifiers.Sparsifier:
        mutual = bool(self.mutual_steps)
        return sparsifiers.FeatureChoice(self.n_latents, self.k, self.zipf_exponent, self.momentum, mutual)

    def controllers(self) -> list[Controller]:
        return [ZipfBudgets(self.n_latents, self.mutual_steps)] if self.mutual_steps else []

    def objective(self) -> Objective:
        return Objective({"zipf_aux": Weighted(ZipfAux(self.zipf_exponent), self.auxk_coefficient)})


RECIPES: tuple[type[Recipe], ...] = (FeatureChoice,)
