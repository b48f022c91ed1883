"""The arguments at which Triton's JIT makes another kernel of the same source.

It turns a number that is 1 into a constant, which has no methods, and looks at what 16 divides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from isobit.kernels.gpu.launch import Launch

WIDE = {"patience", "seed"}
"""Numbers that may need 64 bits."""


class Unaligned:
    """A tensor without memory at an address that nothing but the size of its elements divides."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def data_ptr(self) -> int:
        return self.dtype.itemsize


def edges(launch: Launch) -> Iterator[tuple[str, Launch]]:
    """The same launch with every number 1, with nothing that 16 divides, with numbers of 64 bits
    where there may be some."""
    given = {
        parameter.name: launch.arguments[parameter.name]
        for parameter in launch.kernel.params
        if not parameter.is_constexpr
    }
    numbers = [name for name, value in given.items() if type(value) is int]
    tensors = {n: Unaligned(t.dtype) for n, t in given.items() if isinstance(t, torch.Tensor)}
    yield "numbers of 1", _with(launch, dict.fromkeys(numbers, 1))
    yield "nothing that 16 divides", _with(launch, dict.fromkeys(numbers, 17) | tensors)
    if wide := WIDE & set(numbers):
        yield "numbers of 64 bits", _with(launch, dict.fromkeys(wide, 1 << 40))


def _with(launch: Launch, changed: dict[str, Any]) -> Launch:
    return dataclasses.replace(launch, arguments=launch.arguments | changed)
