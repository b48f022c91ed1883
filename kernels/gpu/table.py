"""Blocks and pipelines by architecture and rows: a static table, nothing is tuned while running.

Nothing here changes a bit of a result; what would (the length of a run, the depth of a matrix
instruction, the tree) is the same in every entry. So entries may be tuned freely.
"""

from __future__ import annotations

from dataclasses import dataclass

from .architecture import Architecture


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


_MANY_ROWS = 1 << 30
_AMPERE = (
    (8, Block(rows=8, columns=64, warps=4, stages=4)),
    (16, Block(rows=16, columns=64, warps=4, stages=4)),
    (64, Block(rows=32, columns=64, warps=4, stages=3)),
    (_MANY_ROWS, Block(rows=64, columns=128, warps=8, stages=3, loop=True, spills=True)),
)
_HOPPER = (
    (16, Block(rows=16, columns=64, warps=4, stages=4)),
    (64, Block(rows=32, columns=64, warps=4, stages=4)),
    (128, Block(rows=32, columns=128, warps=8, stages=3, loop=True)),
    (_MANY_ROWS, Block(rows=128, columns=128, warps=8, stages=3, loop=True, spills=True)),
)
BLOCKS = {80: _AMPERE, 86: _AMPERE, 89: _AMPERE, 90: _HOPPER}


def product_block(architecture: Architecture, rows: int) -> Block:
    """The block for a product of so many rows."""
    return next(block for most, block in BLOCKS[architecture.capability] if rows <= most)


def product_blocks(architecture: Architecture) -> list[Block]:
    """Every block of the table."""
    return [block for _, block in BLOCKS[architecture.capability]]
