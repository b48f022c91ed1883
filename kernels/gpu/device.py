"""A CUDA device as `kernels.device` wants it. Imports triton."""

from __future__ import annotations

import torch

from ..step.step import StepLimits
from ..weights.weight import PackedWeight
from .card import Card
from .layout import to_gpu
from .program import GpuProgram
from .weight import GpuWeight


class Gpu:
    """A card, for steps of up to `most_rows` rows; `eager`: decode without graphs."""

    spare_pages = 1

    def __init__(self, card: Card, *, most_rows: int, eager: bool) -> None:
        self.card, self._most_rows, self._eager = card, most_rows, eager

    @property
    def device(self) -> torch.device:
        return self.card.device

    def weight(self, packed: PackedWeight) -> GpuWeight:
        """See Device; raises InputError E-KERNEL-KIND for float32 weights."""
        return to_gpu(packed, self.device)

    def program(self, limits: StepLimits) -> GpuProgram:
        """See Device."""
        return GpuProgram(limits, self.card, most_rows=self._most_rows, eager=self._eager)
