"""What changes from one run of a program to the next: the rows of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from isobit.errors import InputError

from ..checks import Checks
from ..native import native
from .kv_cache import PAGE


@dataclass(frozen=True, kw_only=True)
class Step:
    """T rows of B sequences, L of them sampled, P pages a sequence.

    `tokens` int64 [T], `positions` int32 [T], `slots` int64 [T] (page * 64 + offset), `sequence`
    int32 [T], `block_tables` int32 [B, P], `sampled` int64 [L].
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sequence: torch.Tensor
    block_tables: torch.Tensor
    sampled: torch.Tensor

    # A step that is written over is asked again and again, and tensors are slow to tell.
    @cached_property
    def rows(self) -> int:
        return len(self.tokens)

    @cached_property
    def sampled_rows(self) -> int:
        return len(self.sampled)

    @cached_property
    def memory(self) -> tuple[int, ...]:
        """Where its lists and its tables lie, how many rows they have, and the shape of tables."""
        lists = (self.tokens, self.positions, self.slots, self.sequence, self.sampled)
        addresses = (one.data_ptr() for one in (*lists, self.block_tables))
        return (*addresses, self.rows, self.sampled_rows, *self.block_tables.shape)

    @classmethod
    def empty(cls) -> Step:
        """A step without rows."""
        none, none32 = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
        return cls(
            tokens=none,
            positions=none32,
            slots=none,
            sequence=none32,
            block_tables=none32.view(0, 0),
            sampled=none,
        )


@dataclass(frozen=True, kw_only=True)
class StepLimits:
    """How far the indices of a step may reach: tokens, positions, pages of the KV cache."""

    vocabulary: int
    positions: int
    pages: int


class StepMemory:
    """Memory for one step after another: steps of one shape are written into the same tensors.

    Making six tensors, and checking them, takes longer than an op of a layer.
    """

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._step = Step.empty()
        self.ends: list[int] = []
        """For how many positions the pages of each row's sequence last."""
        self._addresses: list[int] = []

    def fill(
        self,
        *,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequence: Sequence[int],
        tables: Sequence[Sequence[int]],
        sampled: Sequence[int],
    ) -> Step:
        """The step of T tokens; `tables` has the pages of each sequence. It holds until the next.

        A position whose page its table lacks gets slot -1, which no program runs. Raises InputError
        E-KERNEL-SHAPE when the rows of the lists are not as many.
        """
        if not len(tokens) == len(positions) == len(sequence):
            raise InputError(
                "E-KERNEL-SHAPE",
                f"step: {len(tokens)} tokens, {len(positions)} positions, {len(sequence)} rows of "
                "sequences",
            )
        self.ends = [len(tables[owner]) * PAGE for owner in sequence]
        width = max(map(len, tables))
        shape = (len(tokens), len(sampled), len(tables), width)
        if shape != self._shape:
            self._make(shape)
        native().fill_step(self._addresses, width, tokens, positions, sequence, tables, sampled)
        return self._step

    def _make(self, shape: tuple[int, ...]) -> None:
        rows, sampled, sequences, width = shape
        sizes = {name: (sampled if name == "sampled" else rows,) for name in KINDS}
        made = {name: torch.empty(sizes[name], dtype=kind) for name, kind in KINDS.items()}
        tables = torch.empty(sequences, width, dtype=torch.int32)
        self._shape, self._step = shape, Step(**made, block_tables=tables)
        self._addresses = [tensor.data_ptr() for tensor in (*made.values(), tables)]


KINDS = {
    "tokens": torch.int64,
    "positions": torch.int32,
    "slots": torch.int64,
    "sequence": torch.int32,
    "sampled": torch.int64,
}


def check_step(step: Step, limits: StepLimits, last: Step) -> None:
    """Raise InputError E-KERNEL-SHAPE, or E-KERNEL-INDEX naming the first index that is outside.

    `last` is the step that the program ran before: where it was written over, its tensors have been
    looked at, and only what they say is new.
    """
    if step is not last:
        _check_tensors(step)
    _check_reach(step, limits)


def _check_tensors(step: Step) -> None:
    checks = Checks("step")
    for name, kind in KINDS.items():
        rows = None if name == "sampled" else step.rows
        checks.tensor(name, getattr(step, name), (rows,), kind)
    checks.tensor("block_tables", step.block_tables, (None, None), torch.int32)
    checks.done()


def _check_reach(step: Step, limits: StepLimits) -> None:
    where, index = native().step_outside(
        step.memory, limits.vocabulary, limits.positions, limits.pages
    )
    if where < 0:
        return
    lists = (step.tokens, step.positions, step.slots, step.sequence, step.sampled)
    if where == len(lists):
        raise _no_page(
            "step", step.block_tables, step.sequence, step.positions, index, limits.pages
        )
    slots = limits.pages * PAGE
    ends = (limits.vocabulary, limits.positions, slots, len(step.block_tables), step.rows)
    raise _outside(f"step: {list(KINDS)[where]}", lists[where], index, ends[where])


def _outside(name: str, values: torch.Tensor, index: int, limit: int) -> InputError:
    return InputError(
        "E-KERNEL-INDEX",
        f"{name}[{index}] is {int(values[index])}; it must be from 0 to {limit - 1}",
    )


def check_indices(name: str, values: torch.Tensor, limit: int) -> None:
    """Raise InputError E-KERNEL-INDEX unless all int32 or int64 values are from 0 to limit - 1."""
    first = native().first_outside32 if values.dtype == torch.int32 else native().first_outside64
    outside = first(values.data_ptr(), len(values), limit)
    if outside >= 0:
        raise _outside(name, values, outside, limit)


def check_pages(
    what: str,
    block_tables: torch.Tensor,
    sequence: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    pages: int,
) -> None:
    """Raise InputError E-KERNEL-INDEX for a row whose keys lie on a page that its table lacks."""
    row = native().first_without_page(
        block_tables.data_ptr(),
        block_tables.shape[1],
        sequence.data_ptr(),
        positions.data_ptr(),
        len(positions),
        window,
        pages,
    )
    if row >= 0:
        raise _no_page(what, block_tables, sequence, positions, row, pages)


def _no_page(
    what: str,
    block_tables: torch.Tensor,
    sequence: torch.Tensor,
    positions: torch.Tensor,
    row: int,
    pages: int,
) -> InputError:
    return InputError(
        "E-KERNEL-INDEX",
        f"{what}: row {row} at position {int(positions[row])} needs pages that sequence "
        f"{int(sequence[row])} lacks (its table has {block_tables.shape[1]}, the cache {pages})",
    )
