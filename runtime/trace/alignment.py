"""Two traces side by side: the same tokens in rows, the same columns of whole tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from isobit.errors import InputError

from .folder import Piece, Trace
from .index import Row, TracedSite, TraceIndex

BLOCK_BYTES = 32 << 20
CUT = ("atoms", "layout", "intermediate", "heads", "vocab")


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows that one step of a and one step of b have in common, and their places in each."""

    step_a: int
    step_b: int
    rows: list[Row]
    places_a: list[int]
    places_b: list[int]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Columns [begin:begin + width) of some rows, and whose they are.

    `stored` says, where columns were moved into the checkpoint's order, where each was.
    """

    begin: int
    values: torch.Tensor
    pieces: Sequence[Piece]
    stored: torch.Tensor | None = None

    @property
    def end(self) -> int:
        return self.begin + self.values.shape[1]

    def owner(self, column: int) -> tuple[int, str]:
        """The rank and the part that a column comes from."""
        column = column if self.stored is None else int(self.stored[column])
        piece = next(piece for piece in self.pieces if piece.begin <= column < piece.end)
        return piece.rank, piece.part_of(column)


def common_tokens(a: TraceIndex, b: TraceIndex) -> list[int]:
    """For each request, how many tokens the traces share from the begin.

    Raises InputError E-TRACE-MODEL when the models have other shapes, E-TRACE-PROMPT when the
    prompts are others.
    """
    if a.shape != b.shape:
        names = sorted({*a.shape, *b.shape})
        wrong = [
            f"{name}: {a.shape.get(name)} and {b.shape.get(name)}"
            for name in names
            if a.shape.get(name) != b.shape.get(name)
        ]
        raise InputError(
            "E-TRACE-MODEL", "the traces are of models of other shapes:\n  " + "\n  ".join(wrong)
        )
    if len(a.tokens) != len(b.tokens):
        raise InputError(
            "E-TRACE-PROMPT",
            f"the traces have {len(a.tokens)} and {len(b.tokens)} prompts; give both the same",
        )
    shared, wrong = [], []
    for request, (ours, theirs) in enumerate(zip(a.tokens, b.tokens, strict=True)):
        pairs = enumerate(zip(ours, theirs, strict=False))
        length = min(len(ours), len(theirs))
        part = next((i for i, (one, other) in pairs if one != other), length)
        if part < min(a.prompts[request], b.prompts[request], length):
            wrong.append(
                f"prompt {request}: token {part} is {ours[part]} in the one and {theirs[part]} in "
                "the other"
            )
        shared.append(part)
    if wrong:
        raise InputError(
            "E-TRACE-PROMPT", "the traces are of other prompts:\n  " + "\n  ".join(wrong)
        )
    return shared


def same_cut(a: TraceIndex, b: TraceIndex) -> bool:
    """Whether two runs of isobit cut every dimension into the same atoms."""
    if a.plan is None or b.plan is None:
        return False
    return all(a.plan.get(name) == b.plan.get(name) for name in CUT)


def row_blocks(
    a: Trace, b: Trace, sites: tuple[TracedSite, TracedSite], shared: Sequence[int]
) -> Iterator[Block]:
    """The rows of a site that both traces have, in the order of a, in blocks of bounded size."""
    there = b.places(sites[1])
    both = [
        (step, there[row][0], place, there[row][1], row)
        for row, (step, place) in a.places(sites[0]).items()
        if row in there and row[1] < shared[row[0]]
    ]
    most = max(1, BLOCK_BYTES // (8 * max(1, sites[0].width)))
    for (step_a, step_b), group in groupby(both, key=lambda match: match[:2]):
        matches = list(group)
        for first in range(0, len(matches), most):
            some = matches[first : first + most]
            yield Block(
                step_a=step_a,
                step_b=step_b,
                rows=[match[4] for match in some],
                places_a=[match[2] for match in some],
                places_b=[match[3] for match in some],
            )


def strips(
    trace: Trace,
    site: TracedSite,
    step: int,
    places: Sequence[int],
    rank: int | None,
    in_checkpoint_order: bool,
) -> list[Strip]:
    """What each rank (or one alone) recorded of some rows, without padded columns.

    `in_checkpoint_order` puts all ranks together and undoes act-order; then there is one strip,
    or none where a rank is missing.
    """
    found = []
    for piece in trace.pieces.get((site.name, step), ()):
        end = min(piece.end, site.width)
        if piece.entry is not None and piece.begin < end and rank in (None, piece.rank):
            values = trace.read(piece.entry, places)[:, : end - piece.begin]
            found.append(Strip(begin=piece.begin, values=values, pieces=(piece,)))
    order = trace.index.orders.get(site.name)
    if not in_checkpoint_order:
        return found
    whole = cover(found)
    if sum(strip.values.shape[1] for strip in whole) != site.width:
        return []
    values = torch.cat([strip.values for strip in whole], dim=1)
    pieces = [piece for strip in whole for piece in strip.pieces]
    if order is None:
        return [Strip(begin=0, values=values, pieces=pieces)]
    stored = torch.tensor(order).argsort()
    return [Strip(begin=0, values=values[:, stored], pieces=pieces, stored=stored)]


def cover(strips: Sequence[Strip]) -> list[Strip]:
    """Every column that some rank has, once, in the order of columns: the first rank's."""
    covered: list[Strip] = []
    at = 0
    for strip in sorted(strips, key=lambda strip: (strip.begin, -strip.end)):
        begin = max(at, strip.begin)
        if begin < strip.end:
            left = strip.values[:, begin - strip.begin :]
            covered.append(Strip(begin=begin, values=left, pieces=strip.pieces))
            at = strip.end
    return covered
