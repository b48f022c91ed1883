"""Faults of numbers, put into ranks through ISOBIT_FAULT."""

from __future__ import annotations

import torch

from isobit.kernels.program import record
from isobit.runtime.worker.fault_injection import FaultContext

LAYER = 1
ROWS = 50


def overflow_inside_a_short_product(context: FaultContext) -> None:
    """In float16 one down_proj keeps partial sums that do not fit, on its path for 50 rows."""
    if context.decoder.dtype != torch.float16:
        return
    right, weight = record.linear, context.model.layers[LAYER].products["down"]

    def lose(out: torch.Tensor) -> None:
        if out.shape[-2] == ROWS:
            out[..., 7] = float("inf")

    def linear(program, x, weights, outs, **more):
        right(program, x, weights, outs, **more)
        for each, out in zip(weights, outs, strict=True):
            if each is weight:
                program.call(lambda out=out: lose(program.planes_of(out)))

    record.linear = linear
