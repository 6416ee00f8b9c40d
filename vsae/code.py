"""The sparse code of a batch: which latents speak for each row, and how loudly."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Code(NamedTuple):
    """A sparse [batch, n_latents] matrix as `k` slots a row. What follows costs batch * k * d_model, not batch * n_latents * d_model."""

    values: Float[Tensor, "batch k"]
    """Activation of each selected latent. 0 marks an empty slot; signed codes are allowed, so active means `!= 0`."""

    indices: Int[Tensor, "batch k"]
    """Which latent each value belongs to. No order within a row is promised; an empty slot may repeat an index."""

    def dense(self, n_latents: int) -> Float[Tensor, "batch n_latents"]:
        """The matrix itself. For tests, small dictionaries and codes too wide to be worth keeping sparse."""
        if self.is_full(n_latents):
            return self.values
        return self.values.new_zeros(len(self.values), n_latents).scatter_add(1, self.indices, self.values)

    def counts(self, n_latents: int) -> Int[Tensor, "n_latents"]:
        """How many rows each latent is active in. Waits for no device."""
        active = self.values != 0
        if self.indices.stride(0) == 0:  # one row of indices for all
            active, indices = active.sum(0), self.indices[:1].flatten()
        else:
            active, indices = active.flatten().long(), self.indices.flatten()
        return active.new_zeros(n_latents).scatter_add_(0, indices, active)

    def is_full(self, n_latents: int) -> bool:
        """True for a code whose slot j is latent j in every row, as `Code.full` makes it."""
        shared = self.indices.shape[1] == n_latents and self.indices.stride(0) == 0
        return shared and torch.equal(self.indices[:1].flatten(), torch.arange(n_latents, device=self.indices.device))

    @staticmethod
    def full(values: Float[Tensor, "batch n_latents"]) -> "Code":
        """A dense matrix as a code. The one row of indices is shared, so that it costs no memory."""
        return Code(values, torch.arange(values.shape[1], device=values.device).expand(values.shape))
