"""The sizes for which a step's launches are listed: few, and the same for many steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..step.step import Step
from .attention import STRETCH_KEYS, Heads, cut_chunks
from .launch import ceil_div, power_of_2

MULTIPLE = 64
SPLIT_ROWS = 32
"""More rows than this fill a card without splitting their keys; their states would take memory."""
MOST_STATES = 1024
"""Rows times stretches, beyond which keys are not split either."""


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
        if decode:
            stretches = _stretches(rows, most)
    shape = Shape(
        rows=rows,
        sampled=padded(step.sampled_rows),
        chunks=rows if decode else padded(len(chunks)),
        columns=columns,
        stretches=stretches,
        decode=decode,
    )
    return shape, chunks


def _stretches(rows: int, positions: int) -> int:
    count = power_of_2(ceil_div(positions, STRETCH_KEYS))
    return count if rows <= SPLIT_ROWS and rows * count <= MOST_STATES else 1


def sizes(most: int) -> list[int]:
    """Everything that up to `most` rows are padded to."""
    return sorted({padded(count) for count in range(1, most + 1)})


def prepared_shapes(
    rows: int, sampled: int, positions: int, heads: Heads | None
) -> Iterator[Shape]:
    """Shapes whose kernels are those of every shape that steps have, the one with most rows first.

    A kernel is compiled for the rows of a step or for its sampled rows, never for both together,
    and for no number of chunks.
    """
    columns = (0,) if heads is None else sorted(set(heads.columns))
    lengths = [STRETCH_KEYS << power for power in range(power_of_2(positions).bit_length())]
    ends = [length for length in lengths if length < positions] + [positions]
    for count in reversed(sizes(rows)):
        for width in columns:
            common = {"rows": count, "columns": width, "chunks": count}
            some = min(count, sampled)
            yield Shape(**common, sampled=some, stretches=1, decode=False)
            for stretches in sorted({_stretches(count, end) for end in ends}):
                yield Shape(**common, sampled=some, stretches=stretches, decode=True)
    for count in sizes(sampled):
        yield Shape(
            rows=rows, columns=columns[-1], chunks=rows, sampled=count, stretches=1, decode=False
        )


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
