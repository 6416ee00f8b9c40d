"""What a recipe is: a frozen set of hyper-parameters that names the parts of an SAE. A new method overrides the part that is new.

@dataclass(frozen=True)
class Mine(Recipe):
    name: ClassVar[str] = "mine"
    k: int = 32
    def sparsifier(self) -> Sparsifier: return MySparsifier(self.k)
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vsae import ops
from vsae.controllers import Controller
from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Encoder, Linear
from vsae.objectives import Objective, Weighted, auxk
from vsae.sae import SAE
from vsae.sparsifiers import Sparsifier, TopK

START_ROWS = 4096
"""Rows of the sample that are enough to fit one number to."""


@dataclass(frozen=True)
class Recipe:
    """A linear encoder that starts along the atoms, a sparsifier, free atoms of unit norm from random directions; mse and AuxK."""

    name: ClassVar[str] = ""
    """What it is called in `recipe: NAME`."""

    n_latents: int = 4096
    """Number of latents (atoms of the dictionary)."""

    auxk_coefficient: float = field(default=1 / 32, kw_only=True)
    """Weight of the auxiliary loss that revives dead latents; 0 switches it off."""

    def __post_init__(self) -> None:
        """Raises ValueError with a sentence for sizes that cannot be and coefficients below 0: every field that is called so is looked at."""
        if self.n_latents < 1:
            raise ValueError(f"n_latents is {self.n_latents}: an SAE needs at least one latent.")
        for name, value in vars(self).items():
            if name == "k" and not 1 <= value <= self.n_latents:
                raise ValueError(f"k is {value}, but n_latents is {self.n_latents}: choose 1 <= k <= {self.n_latents}.")
            if name.endswith("_coefficient") and not value >= 0:
                raise ValueError(f"{name} is {value}: choose 0 or more.")

    def sparsifier(self) -> Sparsifier:
        """As it is at the start of training. The default keeps the `k` largest of each row."""
        return TopK(getattr(self, "k", 1))

    def dictionary(
        self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int
    ) -> Dictionary:
        """Atoms to start from. The default: free ones of unit norm, in random directions."""
        return Free(random_atoms(self.n_latents, sample, seed))

    def encoder(self, dictionary: Dictionary, sample: Float[Tensor, "rows d_model"], seed: int) -> Encoder:
        """What to start looking with. The default: along the atoms, with rows of unit norm and no bias."""
        atoms = dictionary().detach()
        return Linear(F.normalize(atoms, dim=1), atoms.new_zeros(len(atoms)))

    def build(self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int) -> SAE:
        """The SAE to start from. `sample`: some rows of normalised activations; `mean`: the mean of all of them, which b_dec starts at."""
        dictionary = self.dictionary(sample, mean, seed)
        return started(
            SAE(self.encoder(dictionary, sample, seed), self.sparsifier(), dictionary, mean).to(sample), sample
        )

    def objective(self) -> Objective:
        """What training makes small."""
        return Objective({"auxk": Weighted(auxk, self.auxk_coefficient)})

    def controllers(self) -> list[Controller]:
        """What else acts on the SAE between steps."""
        return []

    @property
    def suggested_lr(self) -> float:
        """What to train with when nobody said: 2e-4 at 16,384 latents, falling as 1 / sqrt(n_latents) (Gao et al. 2024, section 3)."""
        return 2e-4 / math.sqrt(self.n_latents / 2**14)


def random_atoms(
    n_latents: int, sample: Float[Tensor, "rows d_model"], seed: int
) -> Float[Tensor, "n_latents d_model"]:
    """Directions without preference, unit norm. The same for a seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n_latents, sample.shape[1], generator=generator), dim=1).to(sample)


@torch.no_grad()
def started(sae: SAE, sample: Float[Tensor, "rows d_model"]) -> SAE:
    """Give a linear encoder the one scale with which the untrained SAE reconstructs the sample best; nothing in it depends on units then.

    Of a decoder that is not linear, the linear part counts.
    What the sparsifier gathered on the way is of another scale, and is forgotten.
    """
    if not isinstance(sae.encoder, Linear):
        return sae
    before = {name: value.clone() for name, value in sae.sparsifier.state_dict().items()}
    x = sample[:START_ROWS]
    sae.encoder.eval()  # without noise
    x_hat = sae(x).x_hat - sae.b_dec if sae.dictionary.linear else ops.decode(sae.encode(x), sae.atoms)
    energy = x_hat.square().sum()
    if energy > 0:
        sae.encoder.weight.mul_(((x - sae.b_dec) * x_hat).sum() / energy)
    sae.sparsifier.load_state_dict(before)
    sae.encoder.train()
    return sae
