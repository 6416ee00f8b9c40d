"""Parts that only other libraries' SAEs have: ours to read them exactly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vsae.code import Code
from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Encoder
from vsae.preactivations import Affine, PreActivations
from vsae.sae import SAE
from vsae.sparsifiers import Sparsifier, Threshold, checked_k

EPSILON = 1e-5
"""Added to a row's standard deviation; the same in OpenAI's code and in SAELens."""


class SignedTopK(Sparsifier):
    """The `k` largest pre-activations of each row as they are: where fewer are positive, negative ones speak, too (saev; OpenAI without ReLU)."""

    signed = True

    def __init__(self, k: int):
        super().__init__()
        self.k = k

    def forward(self, pre: PreActivations) -> Code:
        k = checked_k(self.k, pre.shape[1])
        return pre.pick(lambda u: u.topk(k, sorted=False).indices)

    def options(self) -> dict[str, Any]:
        return {"k": self.k}


class RowNormalised(Encoder):
    """u = W x' + b of rows brought to one size, each by its own: x' = (x - m) / s, and everything is undone in the reconstruction.

        layer_norm    m = mean(x)    s = std(x) (n - 1; + 1e-5 where it divides)      OpenAI's TopK SAEs, SAELens' layer_norm
        norm          m = 0          s = |x| / sqrt(d_model)                           SAELens' constant_norm_rescale

    There x_hat = s (z D + b) + m 1. Here the codes are in the units of x, s z, and s and m are codes of two more latents (`norm`: one), whose atoms
    are b and 1: then x_hat is a linear function of the code, b_dec is 0, and an edit of a latent means what it says. Those two always speak.
    """

    centred = False
    signed = True

    def __init__(self, weight: Float[Tensor, "n d_model"], bias: Float[Tensor, "n"], how: str):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        self.bias = nn.Parameter(bias.detach().clone())
        self.how = how

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> "RowScaled":
        if self.how == "norm":
            size = torch.linalg.vector_norm(x, dim=1, keepdim=True) / x.shape[1] ** 0.5
            extra, unit = size, x / size.clamp_min(torch.finfo(x.dtype).tiny)
        else:
            mean, size = x.mean(1, keepdim=True), x.std(1, keepdim=True)
            extra, unit = torch.cat([size, mean], 1), (x - mean) / (size + EPSILON)
        return RowScaled(Affine(unit, self.weight, self.bias), size, extra)

    def options(self) -> dict[str, Any]:
        return {"how": self.how}


@dataclass(frozen=True)
class RowScaled(PreActivations):
    """What `RowNormalised` answers: the selection is made on u, the code is s u, and the row's own numbers follow it."""

    inner: Affine
    size: Float[Tensor, "batch 1"]
    extra: Float[Tensor, "batch more"]

    @property
    def shape(self) -> tuple[int, int]:
        batch, n = self.inner.shape
        return batch, n + self.extra.shape[1]

    def top(self, k: int) -> Code:
        return self.scaled(self.inner.top(k))

    def above(self, threshold: Float[Tensor, "..."]) -> Code:
        return self.scaled(self.inner.above(threshold[: self.inner.shape[1]] if threshold.dim() else threshold))

    def pick(self, choose: Callable[[Tensor], Tensor]) -> Code:
        return self.scaled(self.inner.pick(choose))

    def scaled(self, code: Code) -> Code:
        batch, n = self.inner.shape
        more = torch.arange(n, self.shape[1], device=code.indices.device).expand(batch, -1)
        return Code(torch.cat([code.values * self.size, self.extra], 1), torch.cat([code.indices, more], 1))


def row_normalised(
    W_enc: Float[Tensor, "d_model n"],
    b_enc: Float[Tensor, "n"],
    W_dec: Float[Tensor, "n d_model"],
    b_dec: Float[Tensor, "d_model"],
    sparsifier: Sparsifier,
    how: str,
) -> SAE:
    """An SAE that normalises each row before it does what an SAE of these weights does, u = (x' - b_dec) W_enc + b_enc."""
    atoms = torch.cat([W_dec, b_dec[None], *([torch.ones_like(b_dec)[None]] if how == "layer_norm" else [])])
    if (
        isinstance(sparsifier, Threshold) and sparsifier.threshold.dim()
    ):  # a number a latent; the last ones' are never asked
        sparsifier = Threshold(F.pad(sparsifier.threshold, (0, len(atoms) - len(W_dec))))
    encoder = RowNormalised(W_enc.T, b_enc - b_dec @ W_enc, how)
    sae = SAE(encoder, sparsifier, Free(atoms, unit_norm=False), torch.zeros_like(b_dec))
    return sae.eval().requires_grad_(False)
