"""Encode and decode through sparse codes, with PyTorch's own operators on any device, with Triton's kernels on CUDA (triton_path.py).

A code touches batch * k entries of [batch, n_latents], and so do all its gradients. With G the matrix of a code's values (or of their gradient),
everything is one of three products, none of which builds G:

    G T           weighted sums of rows of T               embedding_bag
    (E T^T)[G]    the dot products at G's entries          embedding_bag's backward for its weights
    G^T E         weighted sums of E's rows, per latent    one sort, then embedding_bag over the transposed code

    encode   u = (x W^T + b)[indices]    dx = G W       dW = G^T x    db = G^T 1      G = dL/du at indices
    decode   y = Z D                     dZ = (dy D^T)[indices]       dD = Z^T dy

The selection runs over chunks of rows, so that [batch, n_latents] exists nowhere in full and nothing of it is kept for the backward pass. Where a
code is wide (k > n_latents / 8) the dense product is the faster one and is taken. Under autocast only the selection is done in low
precision; selected values are computed again in the parameters' own.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vsae.code import Code
from vsae.ops import triton_path
from vsae.ops.largest import Magnitudes, largest
from vsae.ops.order import by_latent
from vsae.ops.scratch import scratch

WIDE = 8
"""embedding_bag does about an eighth of a matrix product's multiplications a second: at n_latents / 8 slots the dense product overtakes."""

CHUNK = {"cpu": 2**23, "cuda": 2**27}
"""Pre-activations computed at a time: what stays near the cache on a CPU, what keeps a GPU busy."""


def scores(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Pre-activations of consecutive rows, as (first row, [rows, n_latents]). One buffer is used again: a chunk is gone at the next."""
    rows = max(1, CHUNK.get(x.device.type, 2**25) // len(weight))
    if torch.is_autocast_enabled(x.device.type):
        for lo in range(0, max(1, len(x)), rows):
            yield lo, F.linear(x[lo : lo + rows], weight, bias)
        return
    with scratch((min(rows, len(x)), len(weight)), x.dtype, x.device) as buffer:
        for lo in range(0, max(1, len(x)), rows):  # an empty batch is one empty chunk
            chunk = x[lo : lo + rows]
            yield lo, torch.addmm(bias, chunk, weight.T, out=buffer[: len(chunk)])


def pick(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    choose: Callable[[Tensor], Tensor],
) -> Code:
    """Pre-activations at the latents that `choose` finds: [rows, n_latents] -> indices [rows, k], no row looking at another."""
    if isinstance(choose, Magnitudes) and triton_path.serves(weight) and triton_path.finds(choose.k, len(weight)):
        return Code(*_found(x, weight, bias, choose.k, signed=True))
    found, values = [], []
    with torch.no_grad():
        for _, u in scores(x, weight, bias):
            found.append(choose(u))
            values.append(u.gather(1, found[-1]))
        indices, seen = torch.cat(found), torch.cat(values)
    return Code(entries(x, weight, bias, indices, seen if seen.dtype == x.dtype else None), indices)


def encode_topk(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    k: int,
) -> Code:
    """The k largest pre-activations of each row, negative ones set to 0. Of equal ones at the k-th place, any."""
    if triton_path.serves(weight) and triton_path.finds(k, len(weight)):
        values, indices = _found(x, weight, bias, k)
        return Code(values.relu(), indices)
    code = pick(x, weight, bias, lambda u: largest(u, k))
    return Code(code.values.relu(), code.indices)


def _found(x: Tensor, weight: Tensor, bias: Tensor, k: int, signed: bool = False) -> tuple[Tensor, Tensor]:
    indices, values = triton_path.find(x, weight, bias, k, signed)
    return entries(x, weight, bias, indices, values), indices


def encode_above(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    threshold: Float[Tensor, "..."],
) -> Code:
    """u where u > threshold (a scalar, or one a latent). As wide as the row with most of them; a full code where that is wide.

    The width is known only when the pre-activations are: once a chunk of rows, the host waits for the device.
    """
    rows, latents, values = [], [], []
    counts = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    with torch.no_grad():
        for lo, u in scores(x, weight, bias):
            row, latent = (u > threshold).nonzero(as_tuple=True)
            counts[lo : lo + len(u)] = torch.bincount(row, minlength=len(u))
            rows.append(row + lo)
            latents.append(latent)
            values.append(u[row, latent])
            if wide := is_wide(most(counts), len(weight)):
                break
    if not wide:
        return _padded(x, weight, bias, torch.cat(rows), torch.cat(latents), torch.cat(values), counts)
    u = F.linear(x, weight, bias).to(x.dtype)
    return Code.full(u * (u > threshold))


def _padded(
    x: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, latents: Tensor, seen: Tensor, counts: Tensor
) -> Code:
    """Entries in row order -> a code whose rows are filled up with empty slots."""
    width = max(1, most(counts))
    slots = torch.arange(len(rows), device=x.device) - (counts.cumsum(0) - counts)[rows]
    indices = rows.new_zeros(len(x), width)
    indices[rows, slots] = latents
    values = None
    if seen.dtype == x.dtype:
        values = seen.new_zeros(len(x), width)
        values[rows, slots] = seen
    taken = torch.arange(width, device=x.device) < counts[:, None]
    return Code(entries(x, weight, bias, indices, values) * taken, indices)


def entries(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    indices: Int[Tensor, "batch k"],
    values: Float[Tensor, "batch k"] | None = None,
) -> Float[Tensor, "batch k"]:
    """Pre-activations at the given latents of each row, with gradients to x, weight and bias.

    Args:
        values: the same numbers where they are known already, so that they need not be computed again.
    """
    return _Entries.apply(x, weight, bias, packed(indices), values)


def decode(code: Code, W_dec: Float[Tensor, "n_latents d_model"]) -> Float[Tensor, "batch d_model"]:
    """z D, without a bias, with gradients to the code's values and to W_dec."""
    return _Decode.apply(code.values, packed(code.indices), W_dec)


def packed(indices: Int[Tensor, "batch k"]) -> Int[Tensor, "batch k"]:
    """Contiguous, as embedding_bag wants them; the one shared row of a full code stays as it is."""
    return indices if indices.stride(0) == 0 else indices.contiguous()


class _Entries(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, indices: Tensor, values: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        return dots(x, weight, indices) + bias[indices] if values is None else values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, indices = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        n = len(weight)
        return (
            weighted_sums(grad, indices, weight) if to_x else None,
            transposed_sums(grad, indices, x, n) if to_weight else None,
            slot_sums(grad, indices, n) if to_bias else None,
            None,
            None,
        )


class _Decode(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, W_dec)
        return weighted_sums(values, indices, W_dec)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W_dec = ctx.saved_tensors
        return (
            dots(grad, W_dec, indices) if ctx.needs_input_grad[0] else None,
            None,
            transposed_sums(values, indices, grad, len(W_dec)) if ctx.needs_input_grad[2] else None,
        )


def most(counts: Tensor) -> int:
    """The largest of them, on the host; 0 where there is none."""
    return int(counts.max()) if len(counts) else 0


def is_wide(k: int, n_latents: int) -> bool:
    return k * WIDE > n_latents


def has_bags(like: Tensor) -> bool:
    """Where embedding_bag and its backward for weights exist for this device and dtype."""
    if like.device.type == "cpu":
        return like.dtype in (torch.float32, torch.float64)
    return like.device.type == "cuda"


def weighted_sums(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], table: Float[Tensor, "n_latents d_model"]
) -> Float[Tensor, "batch d_model"]:
    """G T: out[b] = sum_j values[b, j] table[indices[b, j]]."""
    if is_wide(indices.shape[1], len(table)):
        return (Code(values, indices).dense(len(table)) @ table).to(table.dtype)
    if triton_path.serves(table):
        return triton_kernels().weighted_sums(values, indices, table)
    if has_bags(table):
        return F.embedding_bag(indices, table, per_sample_weights=values.to(table.dtype), mode="sum")
    return torch.cat([torch.einsum("bk,bkd->bd", v, table[i]) for v, i in _row_blocks(table, values, indices)])


def dots(
    rows: Float[Tensor, "batch d_model"], table: Float[Tensor, "n_latents d_model"], indices: Int[Tensor, "batch k"]
) -> Float[Tensor, "batch k"]:
    """(E T^T)[G]: out[b, j] = <rows[b], table[indices[b, j]]>."""
    batch, k = indices.shape
    if is_wide(k, len(table)):
        products = (rows @ table.T).to(rows.dtype)
        return products if Code(products, indices).is_full(len(table)) else products.gather(1, indices)
    if triton_path.serves(table):
        return triton_kernels().dots(rows, table, indices)
    if has_bags(table):
        bags = torch.arange(batch, device=rows.device)
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows.contiguous(), table.contiguous(), indices.flatten(), bags * k, bags.repeat_interleave(k), 0
        ).view(batch, k)
    return torch.cat([torch.einsum("bd,bkd->bk", r, table[i]) for r, i in _row_blocks(table, rows, indices)])


def transposed_sums(
    values: Float[Tensor, "batch k"],
    indices: Int[Tensor, "batch k"],
    rows: Float[Tensor, "batch d_model"],
    n_latents: int,
) -> Float[Tensor, "n_latents d_model"]:
    """G^T E: out[i] = sum of values[b, j] rows[b] over the slots with indices[b, j] = i. No atomics: the same result every time."""
    k = indices.shape[1]
    if is_wide(k, n_latents):
        return Code(values, indices).dense(n_latents).T @ rows
    if triton_path.serves(rows):
        return triton_path.transposed_sums(values, indices, rows, n_latents)
    if not has_bags(rows):
        out = rows.new_zeros(n_latents, rows.shape[1])
        for v, i, r in _row_blocks(rows, values, indices, rows):
            out.index_add_(0, i.flatten(), (v[:, :, None] * r[:, None]).flatten(0, 1))
        return out
    weights, latents = values.flatten(), indices
    taken = None
    if rows.device.type == "cpu" and 2 * int(weights.count_nonzero()) < len(weights):
        taken = weights.nonzero().squeeze(1)  # ragged codes have many empty slots; elsewhere counting them would wait
        weights, latents = weights[taken], latents.flatten()[taken]
    order, starts = by_latent(latents, n_latents)
    weights = weights.take(order).to(rows.dtype)
    slots = order if taken is None else taken[order]
    owner = torch.div(slots, k, rounding_mode="floor")
    return F.embedding_bag(owner, rows.contiguous(), starts, per_sample_weights=weights, mode="sum")


def slot_sums(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], n_latents: int
) -> Float[Tensor, "n_latents"]:
    """G^T 1: out[i] = sum of values over the slots with indices[b, j] = i."""
    if triton_path.serves(values) and not is_wide(indices.shape[1], n_latents):
        return triton_path.transposed_sums(values, indices, values.new_ones(len(values), 1), n_latents)[:, 0]
    return values.new_zeros(n_latents).index_add_(0, indices.flatten(), values.flatten())


def triton_kernels() -> ModuleType:
    """Imported where they are first called, as Triton takes its time."""
    from vsae.ops import triton_kernels

    return triton_kernels


def _row_blocks(like: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows in blocks small enough to gather [rows, k, d_model]."""
    k = max(tensor.shape[1] for tensor in tensors[:2])
    return zip(*(tensor.split(max(1, 2**24 // (k * like.shape[1]))) for tensor in tensors), strict=True)
