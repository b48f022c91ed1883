"""What runs to move rows about; tensors are checked and outputs are there."""

from __future__ import annotations

import torch

from .jit import moves
from .launch import Launch, ceil_div

BLOCK = 1024


def pick_rows(
    table: torch.Tensor, index: torch.Tensor, out: torch.Tensor, *, first: int, count: int
) -> Launch:
    """Rows index[m] - first of a table `[*, at least W]` into out `[M, W]`, for index int64 `[M]`.

    Rows of out whose index is not within first..first + count - 1 keep what they held.
    """
    rows, width = out.shape
    arguments = {
        "table": table,
        "index": index,
        "out": out,
        "first": first,
        "count": count,
        "stride": table.shape[1],
        "width": width,
        "BLOCK": BLOCK,
    }
    grid = (rows, ceil_div(width, BLOCK))
    return Launch(kernel=moves.pick_rows, grid=grid, arguments=arguments)


def owned_rows(
    gathered: torch.Tensor, tokens: torch.Tensor, ends: torch.Tensor, out: torch.Tensor
) -> Launch:
    """As record_rows.owned_rows; ends int64 `[ranks]` on the device."""
    ranks, rows, width = gathered.shape
    arguments = {
        "gathered": gathered,
        "tokens": tokens,
        "ends": ends,
        "out": out,
        "rows": rows,
        "width": width,
        "RANKS": ranks,
        "BLOCK": BLOCK,
    }
    grid = (rows, ceil_div(width, BLOCK))
    return Launch(kernel=moves.owned_rows, grid=grid, arguments=arguments)


def join_columns(gathered: torch.Tensor, begins: torch.Tensor, out: torch.Tensor) -> Launch:
    """As record_rows.join_columns; begins int64 `[ranks + 1]` on the device."""
    ranks, rows, stride = gathered.shape
    arguments = {
        "gathered": gathered,
        "begins": begins,
        "out": out,
        "rows": rows,
        "stride": stride,
        "width": out.shape[1],
        "BLOCK": BLOCK,
    }
    grid = (rows, ranks, ceil_div(stride, BLOCK))
    return Launch(kernel=moves.join_columns, grid=grid, arguments=arguments)
