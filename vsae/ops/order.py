"""A code's slots in the order of their latents: what sums over the rows of each latent go by."""

import weakref

import torch
from jaxtyping import Int
from torch import Tensor

_last: tuple[weakref.ref[Tensor], int, int, tuple[Tensor, Tensor]] | None = None


def by_latent(indices: Int[Tensor, "..."], n_latents: int) -> tuple[Int[Tensor, "slots"], Int[Tensor, "n_latents"]]:
    """Positions in `indices`, flattened, with those of equal latents beside each other and in their own order; and where each latent's begin.

    The answer is kept until the next question, as encoder and decoder ask the same one in a backward pass.
    """
    global _last
    if _last is not None:
        of, version, n, answer = _last
        if of() is indices and version == indices._version and n == n_latents:
            return answer
    flat = indices.flatten()
    narrow = torch.int16 if n_latents <= 2**15 else torch.int32  # fewer passes than int64
    order = flat.to(narrow).sort(stable=True).indices
    counts = flat.new_zeros(n_latents).scatter_add_(0, flat, torch.ones_like(flat))
    starts = counts.cumsum(0) - counts
    _last = weakref.ref(indices), indices._version, n_latents, (order, starts)
    return order, starts
