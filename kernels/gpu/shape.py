"""The sizes for which a step's launches are listed: few, and the same for many steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..step import Step
from .attention import STRETCH_KEYS, Heads, cut_chunks
from .launch import ceil_div, power_of_2

MULTIPLE = 64
SPLIT_ROWS = 32
"""More rows than this fill a card without splitting their keys; their states would take memory."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Rows, sampled rows and chunks of rows (see `attention.Chunks`), all padded.

    `decode`: every row is a sequence of its own and is sampled. `stretches`: how many stretches of
    512 keys have programs of their own, 1 for none.
    """

    rows: int
    sampled: int
    chunks: int
    columns: int
    stretches: int
    decode: bool


def padded(count: int) -> int:
    """The least power of two up to 64, or multiple of 64, that is not less; 0 for 0.

    Products make at least 64 rows at once where there are so many: rows beyond a batch cost little.
    """
    if count <= 0:
        return 0
    return power_of_2(count) if count <= MULTIPLE else ceil_div(count, MULTIPLE) * MULTIPLE


def shape_of(step: Step, heads: Heads | None) -> tuple[Shape, list[tuple[int, int]]]:
    """The shape of a step that has rows, and its chunks. Without heads nothing attends."""
    sequences = step.sequence.tolist()
    decode = step.sampled.tolist() == list(range(step.rows))
    decode = decode and len(set(sequences)) == len(sequences)
    rows, most = padded(step.rows), int(step.positions.max()) + 1
    chunks, columns, stretches = [], 0, 1
    if heads is not None:
        chunks, columns = cut_chunks(sequences, heads)
        if decode and rows <= SPLIT_ROWS:
            stretches = power_of_2(ceil_div(most, STRETCH_KEYS))
    shape = Shape(
        rows=rows,
        sampled=padded(step.sampled_rows),
        chunks=rows if decode else padded(len(chunks)),
        columns=columns,
        stretches=stretches,
        decode=decode,
    )
    return shape, chunks


def largest_shape(rows: int, heads: Heads | None) -> Shape:
    """The shape of one long piece of a prompt."""
    step = Step(
        tokens=torch.zeros(rows, dtype=torch.int64),
        positions=torch.zeros(rows, dtype=torch.int32),
        slots=torch.zeros(rows, dtype=torch.int64),
        sequence=torch.zeros(rows, dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        sampled=torch.tensor([rows - 1]),
    )
    return shape_of(step, heads)[0]
