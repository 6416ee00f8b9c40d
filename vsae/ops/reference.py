"""The specification of `vsae.ops`: plain dense PyTorch, one line an operation, gradients by autograd.

Everything faster is tested against these functions in float64, values and gradients. They build [batch, n_latents] and are not meant for training.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae.code import Code


def preactivations(
    x: Float[Tensor, "batch d_model"], weight: Float[Tensor, "n_latents d_model"], bias: Float[Tensor, "n_latents"]
) -> Float[Tensor, "batch n_latents"]:
    """u = x W^T + b, one latent a row of `weight`."""
    return x @ weight.T + bias


def entries(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    indices: Int[Tensor, "batch k"],
) -> Float[Tensor, "batch k"]:
    """u at the given latents of each row."""
    return preactivations(x, weight, bias).gather(1, indices)


def encode_topk(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    k: int,
) -> Code:
    """The k largest u of each row, negative ones set to 0."""
    values, indices = preactivations(x, weight, bias).topk(k)
    return Code(values.relu(), indices)


def encode_above(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    threshold: Float[Tensor, "..."],
) -> Code:
    """u where u > threshold (a scalar, or one a latent)."""
    u = preactivations(x, weight, bias)
    return Code.full(u * (u > threshold))


def encode_batchtopk(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    k: int,
) -> Code:
    """The batch * k largest positive u of the whole batch."""
    u = preactivations(x, weight, bias).relu()
    keep = torch.zeros_like(u).flatten()
    keep[u.flatten().topk(len(u) * k).indices] = 1
    return Code.full(u * keep.view_as(u))


def decode(code: Code, W_dec: Float[Tensor, "n_latents d_model"]) -> Float[Tensor, "batch d_model"]:
    """z D, without a bias."""
    return code.dense(len(W_dec)) @ W_dec
