"""The path of CUDA devices: Triton kernels where embedding_bag and a full product would do too, but slower and with [batch, n_latents] in memory.

    encode     maxima of groups of 8 neighbours, out of the product's registers     [batch, n_latents / 8]  is all that is written
               the k best groups of each row, their members again one by one, the k best of those
    decode     weighted sums of gathered atoms
    weights    slots sorted by latent once, then a sum a latent

The k largest lie in the k groups whose own largest are the k largest, so this is exact in exact arithmetic; in float32 the first product is made of three tf32
ones. Under autocast it is made in bfloat16, EXTRA groups more are looked at, and what decides among the members is computed in full.
"""

import functools
import importlib.util
import os
import weakref
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUP = 8
"""Neighbouring latents of which only the largest is looked at first. More: fewer maxima, but k times as many atoms to look at again."""
EXTRA = 16
"""Groups looked at beyond k where the first product is in bfloat16."""


@functools.cache
def _present() -> bool:
    return importlib.util.find_spec("triton") is not None


def serves(like: Tensor) -> bool:
    """Do the kernels take a tensor of this device and dtype? On a CPU only in Triton's interpreter, which is for tests."""
    if like.device.type == "cuda":
        return _present() and like.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return FORCED and like.device.type == "cpu" and _present() and os.environ.get("TRITON_INTERPRET") == "1"


FORCED = False
"""Tests set it, to take this path on a CPU."""


def finds(k: int, n_latents: int) -> bool:
    """Is selection in two looks worth it: are the groups that are looked at again a small part of all?"""
    return 4 * GROUP * (k + EXTRA) <= n_latents


@torch.no_grad()
def find(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    k: int,
    signed: bool = False,
) -> tuple[Int[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """Latents and pre-activations of the k largest of each row (with `signed`, by magnitude); of equal ones at the k-th place, any."""
    from vsae.ops import triton_kernels as kernels

    low = torch.is_autocast_enabled(x.device.type)
    n = len(weight)
    best = kernels.group_maxima(x, weight, bias, signed, low)
    groups = best.topk(min(k + EXTRA if low else k, best.shape[1]), sorted=False).indices
    members = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=x.device)).flatten(1)
    inside = members < n
    members = members.clamp(max=n - 1)
    u = kernels.dots(x, weight, members) + bias[members]
    rank = torch.where(inside, u.abs() if signed else u, -torch.inf)
    slots = rank.topk(k, sorted=False).indices
    return members.gather(1, slots), u.gather(1, slots)


class Sorted(NamedTuple):
    """The slots of a code in the order of their latents."""

    order: Int[Tensor, "slots"]
    owner: Int[Tensor, "slots"]
    """The row that each belongs to."""
    starts: Int[Tensor, "_"]
    """Where each latent begins; one more, the end."""


_last: tuple["weakref.ref[Tensor]", int, int, Sorted] | None = None


def by_latent(indices: Int[Tensor, "batch k"], n_latents: int) -> Sorted:
    """Sort the slots; encoder and decoder have the same ones, so the last answer is kept as long as its indices live."""
    global _last
    if _last is not None and _last[0]() is indices and _last[1:3] == (indices._version, n_latents):
        return _last[3]
    latents, order = indices.flatten().int().sort(stable=True)
    owner = torch.div(order, indices.shape[1], rounding_mode="floor")
    starts = torch.searchsorted(latents, torch.arange(n_latents + 1, device=indices.device, dtype=torch.int32))
    found = Sorted(order, owner, starts)
    _last = weakref.ref(indices), indices._version, n_latents, found
    return found


def transposed_sums(
    values: Float[Tensor, "batch k"],
    indices: Int[Tensor, "batch k"],
    rows: Float[Tensor, "batch columns"],
    n_latents: int,
) -> Float[Tensor, "n_latents columns"]:
    """out[i] = sum of values[b, j] rows[b] over the slots with indices[b, j] = i."""
    from vsae.ops import triton_kernels as kernels

    order, owner, starts = by_latent(indices, n_latents)
    return kernels.segment_sums(values.flatten()[order], owner, starts, rows)
