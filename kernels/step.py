"""What changes from one run of a program to the next: the rows of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .backend import native
from .cache import PAGE
from .checks import Checks
from .errors import InputError


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

    @property
    def rows(self) -> int:
        return len(self.tokens)

    @property
    def sampled_rows(self) -> int:
        return len(self.sampled)

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


KINDS = {
    "tokens": torch.int64,
    "positions": torch.int32,
    "slots": torch.int64,
    "sequence": torch.int32,
    "sampled": torch.int64,
}


def check_step(step: Step, limits: StepLimits) -> None:
    """Raise InputError E-KERNEL-SHAPE, or E-KERNEL-INDEX naming the first index that is outside."""
    rows, tables = step.rows, step.block_tables
    lists = [step.tokens, step.positions, step.slots, step.sequence, step.sampled]
    # Done for every step: the names of what is wrong are made up only when something is.
    fits = all(
        one.dtype is kind and one.dim() == 1 and one.is_contiguous()
        for one, kind in zip(lists, KINDS.values(), strict=True)
    ) and all(len(one) == rows for one in lists[:-1])
    if not fits or tables.dtype is not torch.int32 or tables.dim() != 2:
        checks = Checks("step")
        for (name, kind), one in zip(KINDS.items(), lists, strict=True):
            checks.tensor(name, one, (None if name == "sampled" else rows,), kind)
        checks.tensor("block_tables", tables, (None, None), torch.int32)
        checks.done()
    ends = (limits.vocabulary, limits.positions, limits.pages * PAGE, len(tables))
    where, index = native().step_outside(
        *(one.data_ptr() for one in lists), rows, step.sampled_rows, *ends
    )
    if where >= 0:
        name, end = list(KINDS)[where], (*ends, rows)[where]
        raise _outside(f"step: {name}", lists[where], index, end)
    check_pages("step", tables, step.sequence, step.positions, 0, limits.pages)


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
        raise InputError(
            "E-KERNEL-INDEX",
            f"{what}: row {row} at position {int(positions[row])} needs pages that sequence "
            f"{int(sequence[row])} lacks (its table has {block_tables.shape[1]}, "
            f"the cache {pages})",
        )
