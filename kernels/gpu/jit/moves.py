"""Rows moved about: embeddings of sharded tables, chosen rows, pieces of logits side by side."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first", "count"])
def pick_rows(table, index, out, first, count, stride, width, BLOCK: tl.constexpr):
    """out `[M, width]`: row index[m] - first of a table `[count, stride]`, where there is one."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    chosen = tl.load(index + row) - first
    if (chosen >= 0) & (chosen < count):
        value = tl.load(table + chosen * stride + place, mask=place < width, other=0.0)
        tl.store(out + row * width + place, value, mask=place < width)


@triton.jit(do_not_specialize=["rows"])
def owned_rows(gathered, tokens, ends, out, rows, width, RANKS: tl.constexpr, BLOCK: tl.constexpr):
    """out fp32 `[rows, width]`: each token's row of the rank that owns it.

    gathered is `[RANKS, rows, width]`; a rank's tokens end before ends[rank], int64.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + row)
    owner = row * 0
    for rank in range(RANKS - 1):
        owner += (token >= tl.load(ends + rank)).to(tl.int64)
    value = tl.load(gathered + (owner * rows + row) * width + place, mask=place < width, other=0.0)
    tl.store(out + row * width + place, value.to(tl.float32), mask=place < width)


@triton.jit(do_not_specialize=["rows"])
def join_columns(gathered, begins, out, rows, stride, width, BLOCK: tl.constexpr):
    """out fp32 `[rows, width]`: of gathered `[ranks, rows, stride]` each rank's first columns.

    Those of rank r go to begins[r]..begins[r + 1] - 1 (int64), as far as out is wide.
    """
    row, rank = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    place = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(begins + rank), tl.load(begins + rank + 1)
    inside = place < tl.minimum(end, width) - begin
    value = tl.load(gathered + (rank * rows + row) * stride + place, mask=inside, other=0.0)
    tl.store(out + row * width + begin + place, value, mask=inside)
