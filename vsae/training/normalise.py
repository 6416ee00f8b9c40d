"""Training sees x_n = (x - shift) / scale; `SAE.fuse(shift, scale)` folds it back, so that a saved run reads raw activations.

none          shift 0             scale 1
scale         shift 0             scale sqrt(E||x||^2 / d)      so E||x_n||^2 = d, whatever the model's units; of joined sites, each by itself
standardise   shift E[x_d]        scale sqrt(Var[x_d])          so every dimension has mean 0 and variance 1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.activations import Moments

CONSTANT = 1e-10
"""A dimension whose variance is below this share of the mean variance does not vary: dividing by it would only amplify rounding."""


@dataclass(frozen=True)
class Normalisation:
    """x_n = (x - shift) / scale, per dimension."""

    shift: Float[Tensor, "d_model"]
    scale: Float[Tensor, "d_model"]

    def __call__(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        return (x - self.shift) / self.scale

    def to(self, device: torch.device) -> "Normalisation":
        return Normalisation(self.shift.to(device), self.scale.to(device))

    def spread(self, moments: Moments) -> Float[Tensor, "d_model"]:
        """Variance of each dimension of the normalised activations; NMSE divides by their sum."""
        return moments.variance / self.scale.cpu().double().square()

    def describe(self, mode: str) -> dict[str, Any]:
        """For the fingerprint: the numbers themselves are folded into the weights."""
        return {"mode": mode, "mean_scale": float(self.scale.mean()), "mean_abs_shift": float(self.shift.abs().mean())}


def normalisation(
    mode: Literal["none", "scale", "standardise"], moments: Moments, columns: Sequence[int] | None = None
) -> Normalisation:
    """What `mode` says for activations with these moments, in float32; `columns`: widths of joined sites. Raises ValueError where it is undefined."""
    if not (torch.isfinite(moments.mean).all() and torch.isfinite(moments.second).all()):
        raise ValueError(
            "the activations hold NaN or infinite values: extract them again, in fp32 if they overflow bf16 or fp16."
        )
    variance = moments.second - moments.mean.square()
    if moments.count == 0 or not variance.sum() > 0:
        raise ValueError(
            f"the {moments.count} activation rows selected for training are all alike: there is nothing to learn."
        )
    shift, scale = torch.zeros_like(moments.mean), torch.ones_like(moments.mean)
    if mode == "scale":
        sites = moments.second.split(list(columns or [len(scale)]))
        if not all(site.mean() > 0 for site in sites):
            raise ValueError("a site that is read together with others holds nothing but zeros: leave it out.")
        scale = torch.cat([site.mean().sqrt().expand(len(site)) for site in sites])
    elif mode == "standardise":
        shift = moments.mean
        scale = torch.where(variance > CONSTANT * variance.mean(), variance.clamp_min(0).sqrt(), scale)
    return Normalisation(shift.float(), scale.float().contiguous())
