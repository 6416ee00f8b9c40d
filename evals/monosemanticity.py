"""Monosemanticity score: are the images that a latent likes alike? (Pach et al. 2025, 2504.02821; spec/papers.md section 7)

    MS = sum over pairs n < m of a_n a_m s_nm / sum over pairs of a_n a_m        s_nm = cos(e_n, e_m), a = activations scaled to [0, 1]
       = (|E^T a|^2 - sum a^2) / ((sum a)^2 - sum a^2)                           linear in the images, for unit embeddings E

e: embeddings of the images by another encoder (DINOv2, CLIP); a score depends on it, and so does its floor, the mean cosine of all pairs: what a latent
that likes all images alike scores. A latent that is constant, or likes one image only, has no score (NaN) and is counted apart, never as 0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evals.matching import unit

CHUNK = 2048


@dataclass(frozen=True)
class Monosemanticity:
    """Scores of all latents, with what they are to be read beside."""

    scores: Float[np.ndarray, "n_latents"]
    """NaN where undefined."""
    floor: float
    """Mean cosine over all pairs of images."""
    undefined: int
    """Latents that are constant or like one image only."""
    images: int

    @property
    def mean(self) -> float | None:
        return float(np.nanmean(self.scores)) if self.undefined < len(self.scores) else None

    @property
    def best(self) -> float | None:
        return float(np.nanmax(self.scores)) if self.undefined < len(self.scores) else None


def scores(
    activations: Float[Tensor, "images n_latents"], embeddings: Float[Tensor, "_ d_embedding"]
) -> Monosemanticity:
    """Of one activation a latent and image (the mean or maximum over its tokens, say). Raises ValueError for other numbers of images, or fewer than two."""
    n = len(embeddings)
    if len(activations) != n or n < 2:
        raise ValueError(
            f"{len(activations)} images have activations and {n} embeddings: give both for the same two images or more."
        )
    E = unit(embeddings)
    found = torch.cat([_scores(some.double().cpu(), E) for some in activations.split(CHUNK, dim=1)]).numpy()
    total = E.sum(0)
    floor = float((total @ total - n) / (n * (n - 1)))
    return Monosemanticity(found, floor, int(np.isnan(found).sum()), n)


def _scores(a: Float[Tensor, "images latents"], E: Float[Tensor, "images d_embedding"]) -> Float[Tensor, "latents"]:
    low, high = a.amin(0), a.amax(0)
    a = (a - low) / torch.where(high > low, high - low, 1)
    own, total = a.square().sum(0), a.sum(0).square()
    pairs = total - own
    agree = (E.T @ a).square().sum(0) - own
    alone = pairs <= 1e-12 * total.clamp_min(1e-300)
    return torch.where(alone | (high <= low), torch.nan, agree / torch.where(alone, 1, pairs))
