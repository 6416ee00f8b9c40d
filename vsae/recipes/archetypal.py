"""Recipes whose atoms are mixtures of points of the data (vsae.archetypal): any sparsifier's recipe, with `Archetypal` before it among the bases."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.anchors import given_anchors, kmeans_anchors, random_anchors
from vsae.archetypal import RelaxedArchetypal, starting_weights
from vsae.recipes.base import Recipe
from vsae.recipes.selection import BatchTopK, TopK
from vsae.sae import SAE


@dataclass(frozen=True)
class Archetypal(Recipe):
    """What a relaxed archetypal dictionary (Fel et al. 2025, 2502.12892) adds to a recipe."""

    anchors: int | None = None
    """Points of the data that atoms are mixed from. Left out: as many as latents, or all distinct rows where those are fewer (all of a file)."""

    anchors_from: str = "kmeans"
    """Where they come from: kmeans (centroids), random (rows of the data, the control that the paper's distillation has to beat), or a safetensors file
    with one tensor [anchors, d_model], in the units of what training sees: raw activations with --training.normalise none."""

    delta: float = 1.0
    """How far an atom may leave the anchors' hull, in units of the normalised activations; 0 for the strict archetypal SAE."""

    centre: bool = True
    """Atoms are directions from the data's mean, which b_dec is. Switched off, b_dec starts at 0 and atoms are points themselves: where activations are mixtures of a few extreme ones, only so can these be told."""

    learn_b_dec: bool = False
    """Let the decoder's bias move in training. b_dec + atom is then no longer a point near the data's hull."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.delta >= 0:
            raise ValueError(f"delta is {self.delta}: choose 0 or more.")
        if self.anchors is not None and self.anchors < 2:
            raise ValueError(f"anchors is {self.anchors}: mixtures need at least two.")

    def dictionary(
        self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int
    ) -> RelaxedArchetypal:
        if self.anchors_from == "kmeans":
            anchors = kmeans_anchors(sample - mean, self.anchors, self.n_latents, seed)
        elif self.anchors_from == "random":
            anchors = random_anchors(sample - mean, self.anchors, self.n_latents, seed)
        else:
            anchors = given_anchors(Path(self.anchors_from), sample, self.anchors) - mean
        return RelaxedArchetypal(anchors, starting_weights(anchors, self.n_latents, seed), self.delta)

    def build(self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int) -> SAE:
        sae = super().build(sample, mean if self.centre else torch.zeros_like(mean), seed)
        sae.b_dec.requires_grad_(self.learn_b_dec)
        return sae


@dataclass(frozen=True)
class RATopK(Archetypal, TopK):
    """TopK with a relaxed archetypal dictionary (Fel et al. 2025): atoms are mixtures of points of the data, and stay near them."""

    name: ClassVar[str] = "ra_topk"


@dataclass(frozen=True)
class ATopK(RATopK):
    """TopK with a strict archetypal dictionary, D = exp(m) W C with W >= 0 and rows that sum to 1 (A-SAE, Fel et al. 2025, eq. 4): atoms never leave the hull."""

    name: ClassVar[str] = "a_topk"

    delta: float = 0.0
    """How far an atom may leave the anchors' hull: not at all."""


@dataclass(frozen=True)
class RABatchTopK(Archetypal, BatchTopK):
    """BatchTopK with a relaxed archetypal dictionary (Fel et al. 2025); the published 32,000 concepts of DINOv2 come with a BatchTopK threshold."""

    name: ClassVar[str] = "ra_batchtopk"


RECIPES: tuple[type[Recipe], ...] = (RATopK, ATopK, RABatchTopK)
