"""Rules that learn who speaks. Their codes carry what a sparsity penalty pushes on, as `GatedCode.gate`.

With H the step 1[u > theta] and K = 1[|u - theta| < eps / 2], a rectangle that integrates to 1 as K / eps, JumpReLU's gradients are by definition

    d H / d theta = - K / eps        d z / d theta = - theta K / eps        d z / d u = H,    none of H with respect to u

the derivatives of the smoothed step clamp((u - theta) / eps + 1/2, 0, 1) and of what it lets through (Rajamanoharan et al. 2024, 2407.14435, section 4).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vsae.code import Code
from vsae.preactivations import Affine, PreActivations
from vsae.sparsifiers.base import Sparsifier
from vsae.sparsifiers.rows import Threshold


class GatedCode(Code):
    """A code that also says what opened its slots, for penalties that push on that and not on the values."""

    gate: Float[Tensor, "batch k"]
    """With gradients; 0 in empty slots. JumpReLU: 1 for an open slot and 0 for one that is almost open. Gated: the gate's pre-activation."""

    def __new__(cls, values: Tensor, indices: Tensor, gate: Tensor) -> "GatedCode":
        code = super().__new__(cls, values, indices)
        code.gate = gate
        return code


class JumpReLU(Sparsifier):
    """z = u 1[u > theta] with a learnt `threshold`, one a latent, kept at 0 or above. Waits for the device, as ReLU does.

    Slots within half a `bandwidth` below the threshold are in the code, as zeros: through them a threshold learns to fall.
    """

    entries_only = True

    def __init__(self, threshold: Float[Tensor, "n_latents"], bandwidth: float):
        super().__init__()
        self.threshold = nn.Parameter(threshold.detach().clone())
        self.bandwidth = bandwidth

    def forward(self, pre: PreActivations) -> GatedCode:
        near = pre.above(self.threshold.detach() - self.bandwidth / 2)
        theta = taken(self.threshold, near.indices)
        step = Step.apply(near.values, theta, self.bandwidth)
        opened = step.detach()
        return GatedCode(near.values * opened + theta.detach() * (step - opened), near.indices, step)

    @torch.no_grad()
    def project_(self) -> None:
        self.threshold.clamp_(min=0)

    def inference(self) -> Threshold:
        return Threshold(self.threshold)

    def options(self) -> dict[str, Any]:
        return {"bandwidth": self.bandwidth}


class Step(Function):
    """1[u > theta], and the rectangle as its derivative. An empty slot, u = 0, has neither."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(u, theta)
        ctx.bandwidth = bandwidth
        return ((u > theta) & (u != 0)).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, theta = ctx.saved_tensors
        near = ((u - theta).abs() < ctx.bandwidth / 2) & (u != 0)
        return None, -grad * near / ctx.bandwidth, None


class Gated(Sparsifier):
    """z = 1[pi > 0] max(0, exp(r) w x + b_mag) where pi = w x + b_gate: who speaks and how loudly, apart (Rajamanoharan et al. 2024, 2404.16014).

    The encoder's bias is b_gate. Waits for the device, as ReLU does.
    """

    def __init__(self, r: Float[Tensor, "n_latents"], b_mag: Float[Tensor, "n_latents"]):
        super().__init__()
        self.r = nn.Parameter(r.detach().clone())
        self.b_mag = nn.Parameter(b_mag.detach().clone())

    def forward(self, pre: PreActivations) -> GatedCode:
        if not isinstance(pre, Affine):
            raise TypeError(f"a gate needs a linear encoder, but this one gives {type(pre).__name__}.")
        pi, indices = pre.above(torch.zeros(()))
        along = pi - taken(pre.bias, indices)
        values = (taken(self.r, indices).exp() * along + taken(self.b_mag, indices)).relu() * (pi > 0)
        return GatedCode(values, indices, pi)


def taken(vector: Float[Tensor, "n_latents"], indices: Int[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
    """vector[indices], with a backward pass that adds instead of sorting."""
    return vector.index_select(0, indices.flatten()).view(indices.shape)
