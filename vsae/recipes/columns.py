"""Recipes whose latents choose their rows."""

from dataclasses import dataclass
from typing import ClassVar

from vsae import sparsifiers
from vsae.objectives import Objective, Weighted, ZipfAux
from vsae.recipes.base import Recipe
from vsae.recipes.selection import BatchTopK


@dataclass(frozen=True)
class FeatureChoice(BatchTopK):
    """Every latent chooses the tokens of a batch that it speaks for (Ayonrinde 2024, 2411.02124); see vsae.sparsifiers.columns. BatchTopK is its Mutual Choice.

    AuxK is made of the latents that fire less than half as often as their budget's law says (the paper's zipf-aux; the half is ours).
    """

    name: ClassVar[str] = "feature_choice"

    zipf_exponent: float = 0.0
    """Budgets fall as 1 / (i + 1)^s over latents; 0: all alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.zipf_exponent >= 0:
            raise ValueError(f"zipf_exponent is {self.zipf_exponent}: choose 0 or more.")

    def sparsifier(self) -> sparsifiers.Sparsifier:
        return sparsifiers.FeatureChoice(self.n_latents, self.k, self.zipf_exponent, self.momentum)

    def objective(self) -> Objective:
        return Objective({"zipf_aux": Weighted(ZipfAux(self.zipf_exponent), self.auxk_coefficient)})


RECIPES: tuple[type[Recipe], ...] = (FeatureChoice,)
