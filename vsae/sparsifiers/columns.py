"""Feature Choice: every latent chooses the rows it speaks for, so that none can die (Ayonrinde 2024, 2411.02124).

    z = u where u > 0 is among the m_i largest of latent i's column in the batch;     sum of m_i = batch * k,   m_i ~ 1 / (i + 1)^s
    for inference   z = u 1[u > theta_i],   theta_i = running mean of the smallest entry that latent i kept

s = 0 gives all the same budget. How the paper gives Zipf-shaped budgets to latents is not known to us: by index is our form.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae.code import Code
from vsae.ops.columns import encode_columns
from vsae.preactivations import Affine, PreActivations
from vsae.sparsifiers.base import Sparsifier, checked_k
from vsae.sparsifiers.rows import Threshold


class FeatureChoice(Sparsifier):
    """The module's docstring has the rule. A batch with fewer than n_latents / `k` rows has too few slots for all latents; some stay silent then."""

    threshold: Tensor
    updates: Tensor

    def __init__(self, n_latents: int, k: int, exponent: float = 0.0, momentum: float = 0.99):
        super().__init__()
        self.k, self.exponent, self.momentum = checked_k(k, n_latents), exponent, momentum
        self.register_buffer("threshold", torch.zeros(n_latents))
        self.register_buffer("updates", torch.zeros(n_latents, dtype=torch.int64))

    @property
    def batch_dependent(self) -> bool:
        return self.training

    def inference(self) -> Threshold:
        return Threshold(self.threshold)

    def forward(self, pre: PreActivations) -> Code:
        """Raises TypeError for pre-activations that are not linear."""
        if not self.training:
            return pre.above(self.threshold)
        if not isinstance(pre, Affine):
            raise TypeError(f"Feature Choice needs a linear encoder, but this one gives {type(pre).__name__}.")
        code = encode_columns(pre.x, pre.weight, pre.bias, self.budgets(len(pre.x)))
        self.follow(code)
        return code

    def budgets(self, batch: int) -> Int[Tensor, "n_latents"]:
        """m_i on the host: at least 1 where there is enough, at most `batch`, batch * k in all (fewer where a latent would need more than `batch`)."""
        n = len(self.threshold)
        least = int(batch * self.k >= n)
        ends = (zipf(n, self.exponent).cumsum(0) * (batch * self.k - least * n)).round().long()
        return (least + ends.diff(prepend=ends.new_zeros(1))).clamp(max=batch)

    @torch.no_grad()
    def follow(self, code: Code) -> None:
        """Move each threshold towards its latent's smallest entry kept; without one, leave it."""
        values = torch.where(code.values > 0, code.values, torch.inf).to(self.threshold.dtype)
        smallest = torch.full_like(self.threshold, torch.inf)
        smallest.scatter_reduce_(0, code.indices.flatten(), values.flatten(), "amin")
        rate = torch.clamp(1 / (self.updates + 1), min=1 - self.momentum)
        seen = smallest.isfinite()
        self.threshold.add_(torch.where(seen, rate * (smallest - self.threshold), 0))
        self.updates.add_(seen)

    def options(self) -> dict[str, Any]:
        return {"k": self.k, "exponent": self.exponent, "momentum": self.momentum}


def zipf(n: int, exponent: float) -> Float[Tensor, "n"]:
    """Shares falling as a power of the rank; sum 1."""
    shares = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    return shares / shares.sum()
