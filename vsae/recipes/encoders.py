"""Recipes that differ in the encoder: how activations become pre-activations."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vsae import pursuit
from vsae.dictionaries import Dictionary
from vsae.encoders import Encoder, Tied
from vsae.recipes.base import Recipe
from vsae.recipes.selection import TopK


@dataclass(frozen=True)
class MatchingPursuit(Recipe):
    """Choose k atoms one after the other, each along what the ones before left over (MP-SAE, 2506.03093); no encoder weights, and k may change after training.

    r = x - b_dec;  k times:  j = argmax_j <r, D_j>,  z_j += <r, D_j>,  r -= <r, D_j> D_j.   The loss is mse alone. The paper trains 25 d_model latents
    for 50 epochs at 5e-4, falling to 1e-6 by a cosine (configs/mp_dinov2.yaml). A step costs as much as a TopK encoding does.
    """

    name: ClassVar[str] = "mp"

    k: int = 32
    """Steps, and so the most latents that speak for one token."""

    auxk_coefficient: float = field(default=0.0, kw_only=True)
    """Weight of the auxiliary loss that revives dead latents, by a pursuit of up to 512 steps among them: slow. 0 switches it off."""

    def encoder(self, dictionary: Dictionary, sample: Float[Tensor, "rows d_model"], seed: int) -> Encoder:
        return pursuit.MatchingPursuit()

    @property
    def suggested_lr(self) -> float:
        """The paper's."""
        return 5e-4


@dataclass(frozen=True)
class OrthogonalMatchingPursuit(MatchingPursuit):
    """Matching pursuit whose coefficients are fitted again after each step, by least squares on all atoms chosen (Pati et al. 1993); signed codes.

    Training a dictionary through it by gradients is ours.
    """

    name: ClassVar[str] = "omp"

    def encoder(self, dictionary: Dictionary, sample: Float[Tensor, "rows d_model"], seed: int) -> Encoder:
        return pursuit.OrthogonalMatchingPursuit()


@dataclass(frozen=True)
class TiedTopK(TopK):
    """TopK whose encoder weights are the atoms themselves: u = D (x - b_dec) + b_enc (tied weights as in Cunningham et al. 2023, 2309.08600; with TopK ours).

    Atoms have unit norm, so what is not orthogonal is counted twice: reconstructions are worse than an untied encoder's at an equal k.
    """

    name: ClassVar[str] = "tied"

    def encoder(self, dictionary: Dictionary, sample: Float[Tensor, "rows d_model"], seed: int) -> Encoder:
        return Tied(sample.new_zeros(self.n_latents))


RECIPES: tuple[type[Recipe], ...] = (MatchingPursuit, OrthogonalMatchingPursuit, TiedTopK)
