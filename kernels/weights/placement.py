"""Where the elements of packed K come from: runs, each from the start of a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from .weight import bad


@dataclass(frozen=True)
class Placement:
    """Where each packed k comes from: `source` int64 `[Kp]` activation indices (-1 = padding)."""

    run_offsets: torch.Tensor
    run_of: torch.Tensor
    source: torch.Tensor
    width: int

    @cached_property
    def identity(self) -> bool:
        return torch.equal(self.source, torch.arange(self.width))

    @cached_property
    def padding(self) -> torch.Tensor:
        return (self.source < 0).nonzero().flatten()


def place(
    runs: Sequence[tuple[int, int]], width: int, line: int, order: torch.Tensor | None = None
) -> Placement:
    """Lays runs (begin, end) out one after the other, each from the start of a line."""
    positions = width if order is None else len(order)
    previous = 0
    for begin, end in runs:
        if not previous <= begin <= end <= positions:
            raise bad(
                f"run ({begin}, {end})", "overlapping or outside", f"ascending in {positions}"
            )
        previous = end
    begins = torch.tensor([begin for begin, _ in runs], dtype=torch.int64)
    lengths = torch.tensor([end - begin for begin, end in runs], dtype=torch.int64)
    padded = (lengths + line - 1) // line * line
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), padded.cumsum(0)])
    run_of = torch.repeat_interleave(torch.arange(len(runs)), padded)
    within = torch.arange(len(run_of)) - offsets[run_of]
    logical = begins[run_of] + within
    inside = within < lengths[run_of]
    source = logical if order is None else order[torch.where(inside, logical, 0)]
    return Placement(offsets.to(torch.int32), run_of, torch.where(inside, source, -1), width)
