"""Memory that one step frees, kept for the next.

The C library on Linux (glibc) gives a block of more than 32 MB back to the system as soon as it is freed, and the next such block comes as zeroed pages, one
fault each. Gradients of a large dictionary are such blocks: with 32,768 latents of 384 dimensions those faults were a seventh of a step.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Their numbers in <malloc.h>."""


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Let this process keep large blocks until the end of the `with`, where a CPU trains and its C library can be told; nothing elsewhere.

    What its allocator has found out by then cannot be asked for, so afterwards it is at the highest thresholds it would ever have set itself.
    """
    library = glibc() if device.type == "cpu" else None
    if library is None:
        yield
        return
    library.mallopt(MMAP_MAX, 0)
    library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(MMAP_MAX, 65536)
        library.mallopt(MMAP_THRESHOLD, 2**25)
        library.mallopt(TRIM_THRESHOLD, 2**26)
        library.malloc_trim(0)


@cache
def glibc() -> ctypes.CDLL | None:
    """This process's C library, where it is glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
