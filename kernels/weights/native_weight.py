"""Packed weights and trees of segments as the compiled module takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from isobit.errors import InputError

from ..checks import NUMBERS
from ..native import native
from .weight import PackedWeight

if TYPE_CHECKING:
    from .._cpu import Weight

KINDS = {"int4": 0, "int8": 1, "bfloat16": 2, "float16": 3, "float32": 4}
MOST_NODES = 16  # as in kernels.h


def native_weight(weight: PackedWeight) -> Weight:
    """Addresses of a weight for the compiled module; `weight` must outlive them."""
    scales = weight.scales
    return native().weight(
        KINDS[weight.kind],
        weight.data.data_ptr(),
        address(scales),
        0 if scales is None else NUMBERS[scales.dtype],
        address(weight.zeros),
        weight.runs,
        weight.n,
        weight.k,
        weight.packed_k,
        weight.run_offsets.data_ptr(),
        weight.segment_offsets.data_ptr(),
        weight.segments,
        address(weight.gather),
        weight.activation == "int8",
        weight.input_scale or 0.0,
    )


def merged(merges: torch.Tensor) -> int:
    """How many sums int32 merges `[S]` leave of S segments.

    Raises InputError E-KERNEL-SHAPE when a merge lacks its two sums, or too many sums wait.
    """
    waiting = 0
    for count in merges.tolist():
        waiting += 1
        if not 0 <= count < waiting or waiting > MOST_NODES:
            raise InputError(
                "E-KERNEL-SHAPE",
                f"merges {merges.tolist()}: each adds two of the sums before it, and at most "
                f"{MOST_NODES} sums may wait",
            )
        waiting -= count
    return waiting


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor's data begin; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
