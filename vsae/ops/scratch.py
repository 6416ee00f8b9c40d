"""Large working memory, kept from one call to the next.

A chunk of pre-activations is tens of megabytes, which a CPU's allocator fetches from the system a zeroed page at a time and gives back at once; that took
longer than filling it. Other devices' allocators keep what is freed.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

_kept = threading.local()


@contextmanager
def scratch(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """A tensor of this shape, with anything in it, to be forgotten at the end of the block. The thread keeps the memory of one, the last that was asked for."""
    if device.type != "cpu":
        yield torch.empty(shape, dtype=dtype, device=device)
        return
    size = prod(shape) * dtype.itemsize
    memory, _kept.memory = (
        getattr(_kept, "memory", None),
        None,
    )  # a block within the block finds none, and makes its own
    if memory is None or len(memory) < size:
        memory = torch.empty(size, dtype=torch.uint8)
    try:
        yield memory[:size].view(dtype).view(shape)
    finally:
        _kept.memory = memory
