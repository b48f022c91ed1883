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


def check_step(step: Step, limits: StepLimits) -> None:
    """Raise InputError E-KERNEL-SHAPE, or E-KERNEL-INDEX naming the first index that is outside."""
    checks, rows = Checks("step"), step.rows
    checks.tensor("tokens", step.tokens, (rows,), torch.int64)
    checks.tensor("positions", step.positions, (rows,), torch.int32)
    checks.tensor("slots", step.slots, (rows,), torch.int64)
    checks.tensor("sequence", step.sequence, (rows,), torch.int32)
    checks.tensor("block_tables", step.block_tables, (None, None), torch.int32)
    checks.tensor("sampled", step.sampled, (None,), torch.int64)
    checks.done()
    sequences = len(step.block_tables)
    check_indices("step: tokens", step.tokens, limits.vocabulary)
    check_indices("step: positions", step.positions, limits.positions)
    check_indices("step: slots", step.slots, limits.pages * PAGE)
    check_indices("step: sequence", step.sequence, sequences)
    check_indices("step: sampled", step.sampled, rows)
    check_pages("step", step.block_tables, step.sequence, step.positions, 0, limits.pages)


def check_indices(name: str, values: torch.Tensor, limit: int) -> None:
    """Raise InputError E-KERNEL-INDEX unless all int32 or int64 values are from 0 to limit - 1."""
    first = native().first_outside32 if values.dtype == torch.int32 else native().first_outside64
    outside = first(values.data_ptr(), len(values), limit)
    if outside >= 0:
        raise InputError(
            "E-KERNEL-INDEX",
            f"{name}[{outside}] is {int(values[outside])}; it must be from 0 to {limit - 1}",
        )


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
