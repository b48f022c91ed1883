"""Memory for what is read again and again from end to end: weights, and what measures reading."""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Sequence

import torch

HUGE_PAGE = 2 << 20
REGION = 32 << 20
SMALLEST = 4096
"""Bytes from which a tensor lies in a region, where it begins on a page."""


class _Regions:
    """Cuts tensors out of regions of huge pages. A region lives as long as one of its tensors.

    Tensors that each took huge pages of their own would leave their ends, and all smaller ones, in
    small pages: a fifth of a model's weights.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int) -> torch.Tensor:
        taken = -(-nbytes // SMALLEST) * SMALLEST
        with self._lock:
            free = self._free
            if taken > len(free):
                free = _region(max(REGION, -(-taken // HUGE_PAGE) * HUGE_PAGE))
            rest = free[taken:]
            if free is self._free or len(rest) > len(self._free):
                self._free = rest
        return free[:nbytes]


def _region(nbytes: int) -> torch.Tensor:
    # Room to begin on a huge page; what is never touched takes no memory.
    region = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(region, dtype=torch.uint8)
    begin = -memory.data_ptr() % HUGE_PAGE
    region.madvise(mmap.MADV_HUGEPAGE, begin, nbytes)
    return memory[begin : begin + nbytes]


_regions = _Regions()


def streamed(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized tensor in huge pages, where the system has some to give.

    A stream over small pages waits for their addresses: decoding one row with INT4 weights is 6 to
    10 % faster in huge pages.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(tuple(shape), dtype=dtype)
    return _regions.take(nbytes).view(dtype).view(tuple(shape))


def kept(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor in such memory."""
    return streamed(tensor.shape, tensor.dtype).copy_(tensor)
