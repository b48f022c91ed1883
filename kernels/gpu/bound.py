"""What an op of a `GpuProgram` is, and what it is given when its launches are listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..step.buffer import Buffer
from .arena import Arena
from .listing import Item
from .shape import Shape
from .step_memory import StepMemory


@dataclass(frozen=True)
class Bound:
    """What an op finds when its launches are listed for a shape."""

    shape: Shape
    memory: StepMemory
    arena: Arena

    def rows(self, buffer: Buffer) -> torch.Tensor:
        """`[rows, width]`; with several planes `[planes, rows, width]`."""
        return buffer.rows(self.shape.sampled if buffer.sampled else self.shape.rows)

    def planes(self, buffer: Buffer) -> torch.Tensor:
        """`[planes, rows, width]`, also where there is one plane."""
        rows = self.rows(buffer)
        return rows if buffer.planes > 1 else rows[None]


Op = Callable[[Bound], Sequence[Item]]
"""Lists its launches for a shape."""
