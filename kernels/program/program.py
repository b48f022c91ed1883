"""Ops recorded once over buffers, then run for every step with few calls into compiled code.

`record` and `record_rows` have the ops. Shapes are checked while recording, for any number of rows;
the indices of a step are checked when it is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import torch

from ..checks import CPU
from ..native import native
from ..step.buffer import Buffer
from ..step.step import Step, StepLimits, check_step
from .readout import Outcome

if TYPE_CHECKING:
    from ..gpu.program import GpuProgram

AnyProgram: TypeAlias = "Program | GpuProgram"
Decoded = tuple[list[int], list[int], int, int]
External = tuple[int, int]
"""Addresses of a C function `int64(context, in, out, rows)` and of its context."""


class Program:
    """Records ops in order, then runs them. What it is given must outlive it.

    `gpu.program.GpuProgram` is its like on a CUDA device.
    """

    device = CPU

    def __init__(self, limits: StepLimits) -> None:
        self.native, self.limits = native().Program(), limits
        self._buffers: list[Buffer] = []
        self._items: list[tuple[int, int] | Callable[[], None]] = []
        self._failures: dict[int, Callable[[], None]] = {}
        self._sampled, self._sampled_from = False, 0
        self._capacity: tuple[int, ...] = (0, 0)
        self._kept: list[object] = []
        self.step = Step.empty()

    def buffer(self, width: int, dtype: torch.dtype, planes: int = 1) -> Buffer:
        """A new buffer, without memory until a step needs it."""
        made = Buffer(self.native.buffer(), planes, width, dtype, self._sampled)
        self._buffers.append(made)
        self._capacity = (0, 0)
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def use_sampled_rows(self) -> None:
        """What is recorded from here on runs over the sampled rows, and not without any."""
        self._sampled, self._sampled_from = True, len(self._items)
        self.native.use_sampled_rows()

    def rows_of(self, buffer: Buffer) -> torch.Tensor:
        """The rows of the current step in a buffer."""
        return buffer.rows(self.step.sampled_rows if buffer.sampled else self.step.rows)

    def planes_of(self, buffer: Buffer) -> torch.Tensor:
        """The same as `[planes, rows, width]`, also where there is one plane."""
        rows = self.rows_of(buffer)
        return rows if buffer.planes > 1 else rows[None]

    def run(self, step: Step) -> None:
        """Run everything in order. Raises InputError E-KERNEL-SHAPE, E-KERNEL-INDEX, and what
        recorded functions raise."""
        check_step(step, self.limits, self.step)
        known = step is self.step
        self.step = step
        if step.rows > self._capacity[0] or step.sampled_rows > self._capacity[1]:
            self._grow(step)
        if not known:
            self.native.set_step(step.memory)
        items = self._items
        if self._sampled and not step.sampled_rows:
            items = items[: self._sampled_from]
        for item in items:
            if callable(item):
                item()
                continue
            failed = self.native.run(*item)
            if failed >= 0:
                self._failures[failed]()

    @property
    def compiled(self) -> bool:
        """Whether no Python function is among what was recorded."""
        return not any(map(callable, self._items))

    def decode(
        self, count: int, tokens: list[int], ends: list[int], outcome: Outcome, digests: bool
    ) -> Iterator[Decoded]:
        """Run the last step up to `count` times more without a way back to Python between them.

        Its rows have to be sampled, all of them and in order, and everything recorded compiled.
        Before each run every row moves on by one position and takes a token: from `tokens` first,
        then the greatest of its own logits, or 0 where there is none. `ends`: for how many
        positions each row has pages. Yields greatest, digests, and nanoseconds inside kernels and
        inside external code of every step. Raises as `run`, after what was made before it.
        """
        step, limits = self.step, self.limits
        assert self.compiled and step.rows == step.sampled_rows == len(tokens)
        last = self._items[-1]
        assert isinstance(last, tuple)
        made, failed = native().decode(
            self.native, last[1], count, tokens, ends, limits.vocabulary, limits.positions,
            limits.pages, outcome.native, digests,
        )  # fmt: skip
        yield from made
        if failed >= 0:
            self._failures[failed]()
        elif len(made) < count:
            check_step(step, limits, step)

    def close(self) -> None:
        """Let go of all that was recorded, after which nothing can be run.

        Recorded functions refer to whoever recorded them, and so keep it and its weights alive.
        """
        for each in (self._items, self._failures, self._kept, self._buffers):
            each.clear()

    def _grow(self, step: Step) -> None:
        self._capacity = tuple(map(max, self._capacity, (step.rows, step.sampled_rows)))
        for buffer in self._buffers:
            rows = self._capacity[buffer.sampled]
            if rows > buffer.capacity:
                size = buffer.planes * rows * buffer.width
                buffer.place(torch.empty(size, dtype=buffer.dtype), rows)
                self.native.place(buffer.id, buffer.memory.data_ptr())

    def call(self, function: Callable[[], None]) -> None:
        """Record a Python function."""
        self._items.append(function)

    def external(
        self, call: External, x: Buffer, out: Buffer, on_failure: Callable[[], None]
    ) -> None:
        """Record compiled code from elsewhere; `on_failure` must raise."""
        op = self.native.external(*call, x.id, out.id)
        self._failures[op] = on_failure
        self.recorded(op)

    def recorded(self, op: int, *kept: object) -> None:
        """Note that the compiled program has a new op, and keep alive what it points at."""
        self._kept += kept
        last = self._items[-1] if len(self._items) > self._sampled_from else None
        if isinstance(last, tuple):
            self._items[-1] = (last[0], op + 1)
        else:
            self._items.append((op, op + 1))
