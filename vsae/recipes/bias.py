"""Recipes whose sparsity a controller sets, latent by latent."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.adaptation import Gained, GroupBias, adapted, group_of, targets
from vsae.controllers import Controller
from vsae.dictionaries import Dictionary
from vsae.encoders import Encoder
from vsae.recipes.base import START_ROWS, Recipe
from vsae.sae import SAE
from vsae.sparsifiers import Sparsifier, Threshold


@dataclass(frozen=True)
class GBA(Recipe):
    """How often a latent may fire is said for its group, and a controller moves its threshold (GBA, 2506.14002); tied weights, no sparsity loss.

    L0 is whatever the frequencies make it, at most their sum. See vsae.adaptation for the rule, and for what is ours in it.
    """

    name: ClassVar[str] = "gba"

    auxk_coefficient: float = field(default=0.0, kw_only=True)
    """Weight of the auxiliary loss that revives dead latents, which the controller does already; 0 switches it off."""

    groups: int = 10
    """Groups of latents, each with a frequency of its own; as many as latents where those are fewer."""

    highest_frequency: float = 0.1
    """Share of the tokens in which a latent of the first group may fire."""

    lowest_frequency: float = 1e-4
    """The same of the last group; those between fall geometrically."""

    adapt_every: int = 50
    """Steps between adaptations."""

    adapt_rate: float = 0.01
    """How far a threshold moves, as a share of what the latent's largest pre-activation lies above it."""

    silent_below: float = 1e-6
    """Latents that fire in a smaller share of the tokens have their threshold lowered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1:
            raise ValueError(f"groups is {self.groups}: choose 1 or more.")
        if not 0 < self.lowest_frequency <= self.highest_frequency <= 1:
            raise ValueError(
                f"frequencies run from {self.highest_frequency} to {self.lowest_frequency}: choose falling ones in (0, 1]."
            )
        if self.adapt_every < 1 or not 0 < self.adapt_rate <= 1:
            raise ValueError(
                f"adapt_every is {self.adapt_every} and adapt_rate {self.adapt_rate}: choose at least 1, and a rate in (0, 1]."
            )

    def sparsifier(self) -> Sparsifier:
        return Threshold(torch.zeros(self.n_latents))  # until the data are seen

    def encoder(self, dictionary: Dictionary, sample: Float[Tensor, "rows d_model"], seed: int) -> Encoder:
        return Gained(sample.new_ones(self.n_latents))

    @property
    def n_groups(self) -> int:
        return min(self.groups, self.n_latents)

    def build(self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int) -> SAE:
        of_group = targets(self.n_groups, self.highest_frequency, self.lowest_frequency)
        frequencies = of_group[group_of(self.n_latents, self.n_groups)]
        return adapted(super().build(sample, mean, seed), sample[:START_ROWS], frequencies)

    def controllers(self) -> list[Controller]:
        return [
            GroupBias(
                self.n_latents,
                self.n_groups,
                self.highest_frequency,
                self.lowest_frequency,
                self.adapt_every,
                self.adapt_rate,
                self.silent_below,
            )
        ]


RECIPES: tuple[type[Recipe], ...] = (GBA,)
