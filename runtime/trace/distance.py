"""How far two tensors are apart, gathered block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from .alignment import Block, Strip

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Place:
    """One number of two traces. `step` counts forward passes of a; `rank` held it in `trace`."""

    step: int
    request: int
    position: int
    column: int
    part: str
    rank: int
    trace: str
    a: float
    b: float


@dataclass(kw_only=True)
class Sums:
    """Sums of squares of a and of b - a, where both are finite; `lost` counts where one is not."""

    reference: float = 0.0
    difference: float = 0.0
    lost: int = 0

    def add(self, other: Sums) -> None:
        self.reference += other.reference
        self.difference += other.difference
        self.lost += other.lost

    @property
    def relative_error(self) -> float:
        """Root mean square of the difference over that of a; infinite where a number was lost."""
        if self.lost:
            return math.inf
        if not self.difference:
            return 0.0
        return math.sqrt(self.difference / self.reference) if self.reference else math.inf


def same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where two tensors are the same: in bits, or in value where their dtypes differ."""
    if a.dtype == b.dtype:
        words = WORDS[a.dtype.itemsize]
        return a.contiguous().view(words) == b.contiguous().view(words)
    x, y = a.double(), b.double()
    return (x == y) | (x.isnan() & y.isnan())


@dataclass
class Distance:
    """Of a site: how many numbers were compared, what they differ by, and where."""

    compared: int = 0
    max_abs: float = 0.0
    sums: dict[int, Sums] = field(default_factory=dict)
    first: Place | None = None
    worst: Place | None = None

    @property
    def bit_equal(self) -> bool:
        return self.first is None

    def total(self) -> Sums:
        """Over all steps."""
        total = Sums()
        for sums in self.sums.values():
            total.add(sums)
        return total

    def add(self, block: Block, base: Strip, other: Strip, trace: str = "b") -> None:
        """Compare the columns that two strips share; `other` belongs to `trace`."""
        begin, end = max(base.begin, other.begin), min(base.end, other.end)
        if begin >= end:
            return
        x = base.values[:, begin - base.begin : end - base.begin]
        y = other.values[:, begin - other.begin : end - other.begin]
        same = same_bits(x, y)

        def place(mark: torch.Tensor) -> Place:
            row, column = divmod(int(mark.flatten().to(torch.uint8).argmax()), end - begin)
            rank, part = other.owner(begin + column)
            request, position = block.rows[row]
            return Place(
                step=block.step_a,
                request=request,
                position=position,
                column=begin + column,
                part=part,
                rank=rank,
                trace=trace,
                a=float(x[row, column]),
                b=float(y[row, column]),
            )

        if not bool(same.all()):
            found = place(~same)
            if self.first is None or _order(found) < _order(self.first):
                self.first = found
        if trace == "b":
            self._measure(block.step_a, x.double(), y.double(), place)

    def _measure(self, step: int, x: torch.Tensor, y: torch.Tensor, place) -> None:
        finite = x.isfinite() & y.isfinite()
        lost = ~finite & (x != y) & ~(x.isnan() & y.isnan())
        apart = torch.where(finite, (y - x).abs(), 0.0)
        known = torch.where(finite, x, 0.0)
        sums = Sums(
            reference=float(known.square().sum()),
            difference=float(apart.square().sum()),
            lost=int(lost.sum()),
        )
        self.compared += x.numel()
        self.sums.setdefault(step, Sums()).add(sums)
        most = float(apart.max())
        if sums.lost and (self.worst is None or math.isfinite(self.worst.a + self.worst.b)):
            self.worst = place(lost)
        elif most > self.max_abs and (
            self.worst is None or math.isfinite(self.worst.a + self.worst.b)
        ):
            self.worst = place(apart == most)
        self.max_abs = max(self.max_abs, most)


def _order(place: Place) -> tuple[int, int, int, int]:
    return place.step, place.request, place.position, place.column
