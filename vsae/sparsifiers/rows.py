"""Rules that look at one row at a time and learn nothing."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vsae.code import Code
from vsae.ops.largest import Magnitudes
from vsae.preactivations import PreActivations
from vsae.sparsifiers.base import Sparsifier, checked_k


class ReLU(Sparsifier):
    """Every positive pre-activation. The code is as wide as the row with most of them, so the host waits for the device to know it."""

    entries_only = True

    def forward(self, pre: PreActivations) -> Code:
        return pre.above(torch.zeros(()))


class TopK(Sparsifier):
    """The `k` largest positive pre-activations of each row. A row with fewer has empty slots; of equal ones at the k-th place, any."""

    entries_only = True

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, pre: PreActivations) -> Code:
        return pre.top(checked_k(self.k, pre.shape[1]))

    def options(self) -> dict[str, Any]:
        return {"k": self.k}


class AbsTopK(Sparsifier):
    """The `k` pre-activations of each row largest in magnitude, with their sign; of equal ones at the k-th place, any."""

    entries_only = True

    signed = True

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, pre: PreActivations) -> Code:
        return self.strongest(pre, checked_k(self.k, pre.shape[1]))

    def strongest(self, pre: PreActivations, k: int) -> Code:
        return pre.pick(Magnitudes(k))

    def options(self) -> dict[str, Any]:
        return {"k": self.k}


class GroupMax(Sparsifier):
    """The largest positive pre-activation of each of `k` groups of neighbouring latents, ceil(n_latents / k) in each but the last; of equal ones, the first."""

    entries_only = True

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, pre: PreActivations) -> Code:
        n_latents = pre.shape[1]
        size = -(-n_latents // checked_k(self.k, n_latents))

        def choose(u: Tensor) -> Tensor:
            groups = F.pad(u, (0, -n_latents % size), value=-torch.inf).view(len(u), -1, size)
            return groups.argmax(2) + size * torch.arange(groups.shape[1], device=u.device)

        code = pre.pick(choose)
        return Code(code.values.relu(), code.indices)

    def options(self) -> dict[str, Any]:
        return {"k": self.k}


class Threshold(Sparsifier):
    """Pre-activations greater than a fixed `threshold`: a scalar, or [n_latents]. Waits for the device, as ReLU does."""

    entries_only = True

    threshold: Tensor

    def __init__(self, threshold: Float[Tensor, "..."]):
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())

    def forward(self, pre: PreActivations) -> Code:
        return pre.above(self.threshold)
