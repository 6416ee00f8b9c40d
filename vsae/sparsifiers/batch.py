"""Rules that look at a whole batch in training, and row by row afterwards."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vsae.code import Code
from vsae.preactivations import PreActivations
from vsae.sparsifiers.base import Sparsifier, checked_k
from vsae.sparsifiers.rows import Threshold


class BatchTopK(Sparsifier):
    """The batch * k largest positive pre-activations of a batch: `k` a row on average, more where there is more to say.

    In training a row's code depends on the rest of its batch, and the host waits for the device twice to know how wide the code is. `threshold` follows
    the smallest activation kept: a plain mean of the first 1 / (1 - momentum) batches, then an exponential one, so that it starts without bias.
    In eval mode it alone decides, u > threshold, row by row. Before any training batch it is 0, which is ReLU.
    """

    entries_only = True

    threshold: Tensor
    updates: Tensor

    def __init__(self, k: int, momentum: float = 0.99):
        super().__init__()
        self.k = k
        self.momentum = momentum
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def batch_dependent(self) -> bool:
        return self.training

    def inference(self) -> Threshold:
        return Threshold(self.threshold)

    def forward(self, pre: PreActivations) -> Code:
        if not self.training:
            return pre.above(self.threshold)
        code = self.select(pre)
        self.follow(code.values)
        return code

    def select(self, pre: PreActivations) -> Code:
        return mutual_choice(pre, self.k)

    @torch.no_grad()
    def follow(self, values: Float[Tensor, "batch k"]) -> None:
        """Move `threshold` towards the smallest of the positive values; without one, leave it."""
        smallest = torch.where(values > 0, values, torch.inf).min()
        rate = torch.clamp(1 / (self.updates + 1), min=1 - self.momentum)
        seen = smallest.isfinite()
        self.threshold.add_(torch.where(seen, rate * (smallest - self.threshold), 0))
        self.updates.add_(seen)

    def options(self) -> dict[str, Any]:
        return {"k": self.k, "momentum": self.momentum}


def mutual_choice(pre: PreActivations, k: int) -> Code:
    """The batch * k largest positive ones. Exact: rows are cut to their largest few first, and rows of which all of those were kept are looked at again, further down."""
    batch, n_latents = pre.shape
    width = min(3 * checked_k(k, n_latents), n_latents)
    with torch.no_grad():
        values, indices = pre.top(width)
        kept = largest(values, batch * k)
        while width < n_latents and (full := kept.all(1)).any():
            more = min(4 * width, n_latents)
            values, indices = F.pad(values, (0, more - width)), F.pad(indices, (0, more - width))
            values[full], indices[full] = pre.rows(full).top(more)
            kept, width = largest(values, batch * k), more
        values, slots = torch.where(kept, values, 0).topk(max(1, int(kept.sum(1).max())), sorted=False)
        indices = indices.gather(1, slots)
    return Code(pre.at(indices, values) * (values > 0), indices)


def largest(values: Float[Tensor, "batch k"], count: int) -> Bool[Tensor, "batch k"]:
    """Which are the `count` largest positive ones; of equal ones at the end, any."""
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept.view(-1)[values.flatten().topk(count, sorted=False).indices] = True
    return kept & (values > 0)
