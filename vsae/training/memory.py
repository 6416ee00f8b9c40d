"""Memory that one step frees, kept for the next.

The C library on Linux (glibc) gives a block of more than 32 MB back to the system as soon as it is freed, and the next such block comes as zeroed pages, one
fault each. Gradients of a large dictionary are such blocks: with 32,768 latents of 384 dimensions those faults were a seventh of a step.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Their numbers in <malloc.h>."""


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Let this process keep large blocks until the end of the `with`, where a CPU trains and its C library can be told; nothing elsewhere.

    What its allocator has found out by then cannot be asked for, so afterwards it is at the highest thresholds it would ever have set itself.
    """
    tell = mallopt() if device.type == "cpu" else None
    if tell is None:
        yield
        return
    tell(MMAP_MAX, 0)
    tell(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        tell(MMAP_MAX, 65536)
        tell(MMAP_THRESHOLD, 2**25)
        tell(TRIM_THRESHOLD, 2**26)
        ctypes.CDLL(None).malloc_trim(0)


def mallopt() -> Callable[[int, int], int] | None:
    """glibc's; None where there is another C library."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None) if hasattr(ctypes.CDLL(None), "malloc_trim") else None
