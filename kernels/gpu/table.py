"""Blocks and pipelines by architecture and rows: a static table, nothing is tuned while running.

Nothing here changes a bit of a result; what would (the length of a run, the depth of a matrix
instruction, the tree) is the same in every entry. So entries may be tuned freely.
"""

from __future__ import annotations

from dataclasses import dataclass

from .architecture import Architecture
from .launch import ceil_div


@dataclass(frozen=True, kw_only=True)
class Block:
    """The part of a product that one program makes, and how.

    `loop`: a program adds up all segments of its block itself; otherwise there is one program for
    each segment, and another kernel adds up. `spills`: sums that wait in the tree may leave the
    registers between two segments, never within the loop over k.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    loop: bool = False
    spills: bool = False


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The blocks for products of up to `rows` rows.

    `wide` gets through more bytes of weights with each instruction; where its programs would leave
    multiprocessors of the card without work, `narrow` has twice as many.
    """

    rows: int
    wide: Block
    narrow: Block | None = None


_MANY_ROWS = 1 << 30
_AMPERE = (
    Blocks(rows=8, wide=Block(rows=8, columns=64, warps=4, stages=4)),
    Blocks(rows=16, wide=Block(rows=16, columns=64, warps=4, stages=4)),
    Blocks(
        rows=64,
        wide=Block(rows=32, columns=128, warps=4, stages=3),
        narrow=Block(rows=32, columns=64, warps=4, stages=3),
    ),
    Blocks(
        rows=_MANY_ROWS,
        wide=Block(rows=64, columns=128, warps=8, stages=3, loop=True, spills=True),
    ),
)
_HOPPER = (
    Blocks(
        rows=16,
        wide=Block(rows=16, columns=128, warps=4, stages=4),
        narrow=Block(rows=16, columns=64, warps=4, stages=4),
    ),
    Blocks(
        rows=64,
        wide=Block(rows=32, columns=128, warps=4, stages=4),
        narrow=Block(rows=32, columns=64, warps=4, stages=4),
    ),
    Blocks(rows=128, wide=Block(rows=32, columns=128, warps=8, stages=3, loop=True)),
    Blocks(
        rows=_MANY_ROWS,
        wide=Block(rows=128, columns=128, warps=8, stages=3, loop=True, spills=True),
    ),
)
BLOCKS = {80: _AMPERE, 86: _AMPERE, 89: _AMPERE, 90: _HOPPER}


def product_block(architecture: Architecture, rows: int, columns: int, segments: int) -> Block:
    """The block for a product of so many rows with a weight of so many columns and segments."""
    found = next(each for each in BLOCKS[architecture.capability] if rows <= each.rows)
    programs = ceil_div(rows, found.wide.rows) * ceil_div(columns, found.wide.columns) * segments
    if found.narrow is None or programs >= architecture.processors:
        return found.wide
    return found.narrow


def product_blocks(architecture: Architecture) -> list[Block]:
    """Every block of the table."""
    each = BLOCKS[architecture.capability]
    return [block for found in each for block in (found.wide, found.narrow) if block is not None]
