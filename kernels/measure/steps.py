"""Steps for measuring: rows that follow each other in one sequence, or stand at its start."""

from __future__ import annotations

import torch

from ..step.kv_cache import PAGE
from ..step.step import Step


def one_position(rows: int) -> Step:
    """Rows for ops that look at no position."""
    nothing = torch.zeros(rows, dtype=torch.int64)
    return Step(
        tokens=nothing,
        positions=nothing.int(),
        slots=nothing,
        sequence=nothing.int(),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        sampled=nothing[:0],
    )


def decode_step(sequences: int, context: int) -> Step:
    """One row for each of some sequences, `context` positions long with it."""
    pages = -(-context // PAGE)
    tables = torch.arange(sequences * pages, dtype=torch.int32).view(sequences, pages)
    last = (context - 1) // PAGE
    return Step(
        tokens=torch.zeros(sequences, dtype=torch.int64),
        positions=torch.full((sequences,), context - 1, dtype=torch.int32),
        slots=tables[:, last].long() * PAGE + (context - 1) % PAGE,
        sequence=torch.arange(sequences, dtype=torch.int32),
        block_tables=tables,
        sampled=torch.empty(0, dtype=torch.int64),
    )


def prefill_step(rows: int) -> Step:
    """The first `rows` positions of one sequence."""
    pages = -(-rows // PAGE)
    positions = torch.arange(rows)
    return Step(
        tokens=torch.zeros(rows, dtype=torch.int64),
        positions=positions.int(),
        slots=positions,
        sequence=torch.zeros(rows, dtype=torch.int32),
        block_tables=torch.arange(pages, dtype=torch.int32)[None],
        sampled=torch.empty(0, dtype=torch.int64),
    )
