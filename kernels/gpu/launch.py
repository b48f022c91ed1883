"""One start of a kernel: what it is given, on how many programs. It can be run, or compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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

    def run(self) -> None:
        """Start the kernel on the current stream, unless it has no programs."""
        if all(self.grid):
            self.kernel[self.grid](
                **self.arguments,
                num_warps=self.warps,
                num_stages=self.stages,
                enable_fp_fusion=False,
            )


def run_all(launches: Sequence[Launch]) -> None:
    """Run them in order."""
    for launch in launches:
        launch.run()
