"""Memory for what an op needs between its kernels, shared by ops that run one after the other."""

from __future__ import annotations

import math

import torch

from .linear import Work

ALIGNMENT = 256


class Arena:
    """Grows to what the largest op needs; what was handed out keeps its memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._used = device, 0
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)

    def work(self) -> Work:
        """The launches of a new op, whose memory begins where that of the op before began."""
        self._used = 0
        return _ArenaWork(self)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Uninitialized memory beside what was taken for the same op."""
        begin = -(-self._used // ALIGNMENT) * ALIGNMENT
        self._used = begin + math.prod(shape) * dtype.itemsize
        if self._used > len(self._memory):
            self._memory = torch.empty(self._used, dtype=torch.uint8, device=self._device)
        return self._memory[begin : self._used].view(dtype).view(shape)

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes


class _ArenaWork(Work):
    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self._arena = arena

    def empty(self, *shape: int, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
        made = self._arena.take(shape, dtype)
        assert made.device == like.device, (made.device, like.device)
        return made
