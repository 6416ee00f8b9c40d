"""Decoding a code by every prefix of the dictionary at once, for about what decoding it whole costs.

y_g = sum over slots with latent < end_g of z D         each slot is summed once, into the first prefix that has it; then a cumulative sum over g
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vsae.code import Code
from vsae.ops.sparse import has_bags, is_wide


def decode_prefixes(
    code: Code, W_dec: Float[Tensor, "n_latents d_model"], ends: Sequence[int]
) -> Float[Tensor, "batch prefixes d_model"]:
    """What the latents below each of the increasing `ends` reconstruct, with gradients to the code's values and to W_dec."""
    batch, k = code.indices.shape
    if is_wide(k, len(W_dec)) or not has_bags(W_dec):
        z = code.dense(len(W_dec))
        starts = (0, *ends[:-1])
        parts = [z[:, lo:hi] @ W_dec[lo:hi] for lo, hi in zip(starts, ends, strict=True)]
        return torch.stack(parts, 1).cumsum(1)
    taken = ((code.values != 0) & (code.indices < ends[-1])).flatten().nonzero().squeeze(1)
    latents = code.indices.flatten()[taken]
    group = torch.bucketize(latents, torch.tensor(ends, device=latents.device), right=True)
    owner = torch.div(taken, k, rounding_mode="floor") * len(ends) + group
    values = code.values.flatten().index_select(0, taken)
    return _Sums.apply(values, latents, owner, W_dec, batch * len(ends)).view(batch, len(ends), -1).cumsum(1)


class _Sums(Function):
    """out[owner_s] += values_s W_dec[latents_s] over slots s."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, latents: Tensor, owner: Tensor, W_dec: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(values, latents, owner, W_dec)
        return sums(values, latents, owner, W_dec, n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, latents, owner, W_dec = ctx.saved_tensors
        to_values = to_atoms = None
        if ctx.needs_input_grad[0]:
            bags = torch.ops.aten._embedding_bag_per_sample_weights_backward
            to_values = bags(
                grad.contiguous(), W_dec.contiguous(), latents, torch.arange(len(grad), device=grad.device), owner, 0
            )
        if ctx.needs_input_grad[3]:
            to_atoms = sums(values, owner, latents, grad, len(W_dec))
        return to_values, None, None, to_atoms, None


def sums(
    values: Float[Tensor, "slots"],
    source: Int[Tensor, "slots"],
    owner: Int[Tensor, "slots"],
    table: Float[Tensor, "rows d_model"],
    n: int,
) -> Float[Tensor, "n d_model"]:
    """out[i] = sum of values_s table[source_s] over the slots with owner_s = i. No atomics: the same result every time."""
    owner, order = owner.int().sort(stable=True)
    starts = torch.searchsorted(owner, torch.arange(n, device=owner.device, dtype=torch.int32))
    weights = values[order].to(table.dtype)
    return F.embedding_bag(source[order], table.contiguous(), starts, per_sample_weights=weights, mode="sum")
