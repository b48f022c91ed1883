"""Fingerprints of weights: one number per row, whatever the ranks that hold it.

Every element gets a number from where it stands and from everything that decides its value: the
code, the zero point, the scale and the static scale of activations, or the bits of a dense value.
A row's fingerprint is the sum of these numbers modulo 2^64, so that pieces of a row add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...kernels.weights.layout import PackedWeight, unpack
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.safetensors_file import SliceReader
from ..formats import bitsandbytes, dense, quantized_format
from ..mixing import mix
from ..model.spec import ModelSpec
from ..plan.modules import LinearModule

ROWS_AT_A_TIME = 256

Spread = tuple[torch.Tensor, torch.Tensor]
"""A table [n, g], and for each of k columns its column in the table."""


@dataclass(frozen=True, kw_only=True)
class Elements:
    """The elements of a weight [n, k]: codes with what turns them into values, or dense values."""

    values: torch.Tensor
    scales: Spread | None = None
    zeros: Spread | None = None
    input_scale: float | None = None


def packed_elements(packed: PackedWeight) -> Elements:
    """What kernels read, padding included."""
    values, scales, zeros = unpack(packed)
    if scales is None:
        return Elements(values=values)
    runs = run_of_feature(packed)
    return Elements(
        values=values,
        scales=(scales, runs),
        zeros=None if zeros is None else (zeros, runs),
        input_scale=packed.input_scale,
    )


def run_of_feature(packed: PackedWeight) -> torch.Tensor:
    """The run of each activation, int64 [k]."""
    lengths = packed.run_offsets.diff()
    run_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths.long())
    if packed.gather is None:
        return run_of
    feature = packed.gather.long()
    out = torch.zeros(packed.k, dtype=torch.int64)
    out[feature[feature >= 0]] = run_of[feature >= 0]
    return out


def stored_elements(
    checkpoint: Checkpoint,
    reader: SliceReader,
    spec: ModelSpec,
    module: LinearModule,
    dtype: torch.dtype,
) -> Elements:
    """A whole weight as the file has it, dense values converted to `dtype`."""
    scheme = spec.scheme(module.name)
    rows, columns = slice(0, module.n), slice(0, module.k)
    if scheme is None:
        values = dense.read_slice(checkpoint, reader, module.name, rows, columns)
        return Elements(values=values.to(dtype))
    if scheme.format == bitsandbytes.NF4:
        values = bitsandbytes.read_nf4(checkpoint, reader, module.name, module.k, rows, columns)
        return Elements(values=values.to(dtype))
    form = quantized_format(scheme.format)
    piece = form.read_slice(checkpoint, reader, module.name, scheme, rows, columns)
    return Elements(
        values=piece.codes,
        scales=(piece.scales, piece.groups),
        zeros=None if piece.zeros is None else (piece.zeros, piece.groups),
        input_scale=piece.input_scale,
    )


def row_fingerprints(
    elements: Elements, rows: torch.Tensor, columns: torch.Tensor, k: int
) -> np.ndarray:
    """Fingerprint uint64 of each of the first rows of a rank's piece.

    `rows` and `columns` say where they stand in the whole weight, whose K is `k`; elements beyond
    them are padding and left out.
    """
    out = np.zeros(len(rows), dtype=np.uint64)
    place_k = columns.numpy().astype(np.uint64)
    tables = (elements.scales, elements.zeros)
    for begin in range(0, len(rows), ROWS_AT_A_TIME):
        part = slice(begin, min(begin + ROWS_AT_A_TIME, len(rows)))
        place_n = rows[part].numpy().astype(np.uint64) * np.uint64(k)
        mixed = mix(place_n[:, None] + place_k[None, :])
        mixed = mix(mixed ^ _bits(elements.values[part, : len(columns)]))
        for spread in tables:
            if spread is not None:
                table, column_of = spread
                values = table[part][:, column_of[: len(columns)]]
                mixed = mix(mixed ^ _bits(values.float() if table.is_floating_point() else values))
        if elements.input_scale is not None:
            mixed = mix(mixed ^ _bits(torch.tensor([elements.input_scale], dtype=torch.float32)))
        out[part] = mixed.sum(axis=1, dtype=np.uint64)
    return out


def vector_fingerprints(values: torch.Tensor, places: torch.Tensor) -> np.ndarray:
    """Fingerprint of each element of a bias or norm that is not padding."""
    return row_fingerprints(Elements(values=values[:, None]), places, torch.zeros(1), 1)


def _bits(values: torch.Tensor) -> np.ndarray:
    """The bits of each element as an unsigned 64-bit number."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[values.dtype.itemsize]
    return values.contiguous().view(width).numpy().astype(np.uint64)
