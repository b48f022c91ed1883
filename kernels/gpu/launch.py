"""One start of a kernel: what it is given, on how many programs. It can be run, or compiled."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime import JITFunction

ALIGNMENT = 16


def ceil_div(count: int, size: int) -> int:
    """How many pieces of a size cover a count."""
    return -(-count // size)


def power_of_2(count: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, count - 1).bit_length()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """`arguments` by the kernel's names: tensors, numbers, and constants of the compilation.

    Multiplications and additions are never contracted by the compiler: where two become one
    rounding, a kernel says so. Otherwise bits would depend on what the compiler sees side by side.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    warps: int = 4
    stages: int = 2

    @property
    def key(self) -> Hashable:
        """Equal for launches that need no other compilation: Triton compiles for the dtype of a
        tensor and whether 16 divides its address, for constants, and for whole numbers that are 1
        or that 16 divides."""
        constants, plain = _parameters(self.kernel)
        parts = []
        for name, value in self.arguments.items():
            if isinstance(value, torch.Tensor):
                parts.append((name, value.dtype, value.data_ptr() % ALIGNMENT == 0))
            elif name in constants or value is None:
                parts.append((name, value))
            elif isinstance(value, float):
                parts.append((name, float))
            else:
                wide = not -(1 << 31) <= value < 1 << 31
                special = None if name in plain else (value == 1, value % ALIGNMENT == 0)
                parts.append((name, wide, special))
        return (self.kernel, self.warps, self.stages, *parts)

    @property
    def _given(self) -> dict[str, Any]:
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}
        return self.arguments | options

    def run(self) -> None:
        """Start the kernel on the current stream, unless it has no programs."""
        if all(self.grid):
            self.kernel[self.grid](**self._given)

    def compile(self) -> Any:
        """Compile what `run` would start, for the current device, and start nothing.

        Returns Triton's compiled kernel.
        """
        return self.kernel.warmup(grid=self.grid, **self._given)

    def load(self) -> None:
        """Compile and load to the current device, so that the first `run` does neither."""
        made = self.compile()
        # An interpreted kernel has nothing to load; asking a compiled one how it is run loads it.
        assert made is None or made.run


@functools.cache
def _parameters(kernel: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The names of constants, and of whole numbers for whose value nothing is compiled."""
    types = kernel.fn.__annotations__.items()
    constants = frozenset(name for name, kind in types if "constexpr" in str(kind))
    if isinstance(kernel, JITFunction):
        names = [one.name for one in kernel.params if one.do_not_specialize]
    else:
        names = kernel.rewriter.kwargs["do_not_specialize"] or ()
    return constants, frozenset(names)


def run_all(launches: Sequence[Launch]) -> None:
    """Run them in order."""
    for launch in launches:
        launch.run()
