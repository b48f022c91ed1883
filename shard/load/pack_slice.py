"""A slice of a quantized weight, as its format stores it, laid out for kernels."""

from __future__ import annotations

import torch

from ...kernels.weights.layout import PackedWeight, pack_stored
from ..formats import QuantizedSlice
from ..formats.scheme import CHANNEL, WeightScheme
from ..plan.runs import Runs, make_runs


def pack_slice(
    piece: QuantizedSlice, scheme: WeightScheme, shape: tuple[int, int], ends: list[int]
) -> PackedWeight:
    """Lay a slice out as a weight of `shape` [n, k], padding included.

    `ends` are the ends of the rank's atoms in its input features: see make_runs.
    """
    n, k = shape
    groups, width = piece.groups, scheme.group_size
    if width == CHANNEL:
        width = k
        if 0 < len(groups) < width:
            # One scale spans the row, and padding belongs to it.
            groups = torch.zeros(width, dtype=torch.int64)
    runs = make_runs(ends, groups, width)
    zeros = None if piece.zeros is None else _by_run(piece.zeros, runs, n, 1 << (scheme.bits - 1))
    return pack_stored(
        piece.stored,
        _by_run(piece.scales, runs, n, 1),
        zeros,
        k=k,
        runs=runs.spans,
        segments=runs.segments,
        order=runs.order,
        activation="float" if scheme.activation == "float" else "int8",
        input_scale=piece.input_scale,
    )


def _by_run(table: torch.Tensor, runs: Runs, rows: int, fill: int) -> torch.Tensor:
    """Columns of a table [n, g] for each run, `fill` for padded runs and rows."""
    if table.shape[0] == rows and runs.groups == list(range(table.shape[1])):
        return table
    out = torch.full((rows, len(runs.groups)), fill, dtype=table.dtype)
    true = [i for i, group in enumerate(runs.groups) if group >= 0]
    out[: table.shape[0], true] = table[:, [runs.groups[i] for i in true]]
    return out
