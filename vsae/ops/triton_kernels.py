"""The three sparse products, and the encoder's product reduced to group maxima, as Triton kernels.

Values are accumulated in float32 (in float64 for float64), in one fixed order and without atomics: the same result every time. Every tensor is read
through its strides, so none has to be contiguous. TRITON_INTERPRET=1 runs them on a CPU, for tests.
"""

import os

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from vsae.ops.triton_path import GROUP

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""The interpreter multiplies the bits of bfloat16 numbers (Triton 3.8), so it is given the same numbers in what they are summed in."""


def wide(dtype: torch.dtype) -> tl.dtype:
    """What sums of numbers of this dtype are kept in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def block(size: int, most: int) -> int:
    """Elements a program takes at a time: a power of 2, at least 16 as products of tiles want it."""
    return max(16, min(most, triton.next_power_of_2(size)))


@triton.jit
def _group_maxima(
    X, W, B, OUT, batch, n, d, x_row, x_col, w_row, w_col, b_step, out_row,
    SIGNED: tl.constexpr, LOW: tl.constexpr, UPCAST: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM).to(tl.int64)
    latents = tl.program_id(1) * BN + tl.arange(0, BN).to(tl.int64)
    u = tl.zeros((BM, BN), ACC)
    for start in range(0, d, BD):
        columns = start + tl.arange(0, BD)
        x_mask = (rows[:, None] < batch) & (columns[None, :] < d)
        w_mask = (latents[None, :] < n) & (columns[:, None] < d)
        x = tl.load(X + rows[:, None] * x_row + columns[None, :] * x_col, mask=x_mask, other=0.0)
        w = tl.load(W + latents[None, :] * w_row + columns[:, None] * w_col, mask=w_mask, other=0.0)
        if LOW:
            x = x.to(tl.bfloat16)
            w = w.to(tl.bfloat16)
        if UPCAST:
            x = x.to(ACC)
            w = w.to(ACC)
        u += tl.dot(x, w, input_precision=PRECISION, out_dtype=ACC)
    u += tl.load(B + latents * b_step, mask=latents < n, other=0.0)[None, :].to(ACC)
    if SIGNED:
        u = tl.abs(u)
    u = tl.where(latents[None, :] < n, u, float("-inf"))
    best = tl.max(tl.reshape(u, (BM, BN // GROUP, GROUP)), axis=2)
    groups = tl.program_id(1) * (BN // GROUP) + tl.arange(0, BN // GROUP)
    mask = (rows[:, None] < batch) & (groups[None, :] * GROUP < n)
    tl.store(OUT + rows[:, None] * out_row + groups[None, :], best, mask=mask)


def group_maxima(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    signed: bool = False,
    low: bool = False,
) -> Float[Tensor, "batch groups"]:
    """The largest u = x W^T + b (with `signed`, |u|) of each GROUP neighbouring latents. `low`: factors rounded to bfloat16 on the way."""
    (batch, d), n = x.shape, len(weight)
    acc = wide(x.dtype)
    out = x.new_empty(batch, triton.cdiv(n, GROUP), dtype=torch.float64 if acc == tl.float64 else torch.float32)
    BM, BN, BD = block(batch, 64), block(n, 128), block(d, 32)
    if batch:
        _group_maxima[(triton.cdiv(batch, BM), triton.cdiv(n, BN))](
            x, weight, bias, out, batch, n, d, *x.stride(), *weight.stride(), bias.stride(0), out.stride(0),
            SIGNED=signed, LOW=low, UPCAST=INTERPRETED, ACC=acc, PRECISION="ieee" if low or acc == tl.float64 else "tf32x3",
            GROUP=GROUP, BM=BM, BN=BN, BD=BD,
        )  # fmt: skip
    return out


@triton.jit
def _sums(
    V, INDICES, T, OUT, k, d, v_row, v_col, i_row, i_col, t_row, t_col, out_row,
    ACC: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros((BD,), ACC)
    for start in range(0, k, BK):
        slots = start + tl.arange(0, BK)
        taken = slots < k
        latents = tl.load(INDICES + row * i_row + slots * i_col, mask=taken, other=0).to(tl.int64)
        values = tl.load(V + row * v_row + slots * v_col, mask=taken, other=0.0).to(ACC)
        mask = taken[:, None] & (columns[None, :] < d)
        atoms = tl.load(T + latents[:, None] * t_row + columns[None, :] * t_col, mask=mask, other=0.0).to(ACC)
        total += tl.sum(values[:, None] * atoms, axis=0)
    tl.store(OUT + row * out_row + columns, total, mask=columns < d)


def weighted_sums(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], table: Float[Tensor, "n_latents d_model"]
) -> Float[Tensor, "batch d_model"]:
    """out[b] = sum_j values[b, j] table[indices[b, j]]."""
    (batch, k), d = indices.shape, table.shape[1]
    out = table.new_empty(batch, d)
    BD = block(d, 256)
    if batch and d:
        _sums[(batch, triton.cdiv(d, BD))](
            values, indices, table, out, k, d, *values.stride(), *indices.stride(), *table.stride(), out.stride(0),
            ACC=wide(table.dtype), BK=16, BD=BD,
        )  # fmt: skip
    return out


@triton.jit
def _dots(
    R, T, INDICES, OUT, k, d, r_row, r_col, t_row, t_col, i_row, i_col, out_row,
    ACC: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * BK + tl.arange(0, BK)
    latents = tl.load(INDICES + row * i_row + slots * i_col, mask=slots < k, other=0).to(tl.int64)
    total = tl.zeros((BK,), ACC)
    for start in range(0, d, BD):
        columns = start + tl.arange(0, BD)
        mine = tl.load(R + row * r_row + columns * r_col, mask=columns < d, other=0.0).to(ACC)
        mask = (slots[:, None] < k) & (columns[None, :] < d)
        atoms = tl.load(T + latents[:, None] * t_row + columns[None, :] * t_col, mask=mask, other=0.0).to(ACC)
        total += tl.sum(atoms * mine[None, :], axis=1)
    tl.store(OUT + row * out_row + slots, total, mask=slots < k)


def dots(
    rows: Float[Tensor, "batch d_model"], table: Float[Tensor, "n_latents d_model"], indices: Int[Tensor, "batch k"]
) -> Float[Tensor, "batch k"]:
    """out[b, j] = <rows[b], table[indices[b, j]]>."""
    (batch, k), d = indices.shape, table.shape[1]
    out = rows.new_empty(batch, k)
    BK = block(k, 32)
    if batch and k:
        _dots[(batch, triton.cdiv(k, BK))](
            rows, table, indices, out, k, d, *rows.stride(), *table.stride(), *indices.stride(), out.stride(0),
            ACC=wide(table.dtype), BK=BK, BD=block(d, 128),
        )  # fmt: skip
    return out


@triton.jit
def _segments(
    V, OWNER, STARTS, R, OUT, d, r_row, r_col, out_row, ACC: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr
):
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BD + tl.arange(0, BD)
    first = tl.load(STARTS + latent)
    last = tl.load(STARTS + latent + 1)
    total = tl.zeros((BD,), ACC)
    for start in range(first, last, BS):
        slots = start + tl.arange(0, BS)
        taken = slots < last
        owner = tl.load(OWNER + slots, mask=taken, other=0).to(tl.int64)
        values = tl.load(V + slots, mask=taken, other=0.0).to(ACC)
        mask = taken[:, None] & (columns[None, :] < d)
        rows = tl.load(R + owner[:, None] * r_row + columns[None, :] * r_col, mask=mask, other=0.0).to(ACC)
        total += tl.sum(values[:, None] * rows, axis=0)
    tl.store(OUT + latent * out_row + columns, total, mask=columns < d)


def segment_sums(
    values: Float[Tensor, "slots"],
    owner: Int[Tensor, "slots"],
    starts: Int[Tensor, "_"],
    rows: Float[Tensor, "batch columns"],
) -> Float[Tensor, "n_latents columns"]:
    """out[i] = sum of values[s] rows[owner[s]] over the slots s from starts[i] to starts[i + 1]; n_latents + 1 starts."""
    n, d = len(starts) - 1, rows.shape[1]
    out = rows.new_empty(n, d)
    BD = block(d, 128)
    if n and d:
        _segments[(n, triton.cdiv(d, BD))](
            values, owner, starts, rows, out, d, *rows.stride(), out.stride(0), ACC=wide(rows.dtype), BS=16, BD=BD
        )
    return out
