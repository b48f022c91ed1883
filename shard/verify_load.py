"""Proving after loading that the shards together are the file, element by element.

Every element of a weight gets a number from where it stands and from everything that decides its
value: the code, the zero point and the scale, or the bits of a dense value. A weight's fingerprint
is the sum of these numbers modulo 2^64, so the fingerprints of the ranks add up to that of the file
whatever the cut. What a rank reports is computed from the packed weight that its kernels read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..kernels.layout import PackedWeight, unpack
from .act_order import mlp_order
from .checkpoint import Checkpoint
from .formats import bitsandbytes, dense, quantized_format
from .load import RankWeights
from .mixing import mix
from .modules import LinearModule, feature_slice, head_module, layer_modules
from .plan import ShardPlan
from .quantization import WeightScheme
from .safetensors_file import SliceReader
from .spec import ModelSpec

ROWS_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True)
class LoadFault:
    """A weight whose shards are not the file."""

    module: str
    expected: int
    found: int


def rank_fingerprints(
    checkpoint: Checkpoint, spec: ModelSpec, plan: ShardPlan, rank: int, weights: RankWeights
) -> dict[str, int]:
    """Fingerprint of what this rank holds of each weight; a KV head held by two ranks counts once.

    Padding is not counted here: `padding_faults` checks it.
    """
    found: dict[str, int] = {}
    for layer in range(spec.layers):
        for name, module in layer_modules(spec, layer).items():
            rows, columns = _places(checkpoint, spec, plan, rank, module, layer)
            packed = weights.layers[layer].products[name]
            found[module.name] = _packed_fingerprint(packed, rows, columns, module.k)
    head = head_module(spec)
    own = feature_slice(plan, head, rank)
    rows = torch.arange(own.offset, own.offset + own.true)
    found[head.name] = _packed_fingerprint(weights.head, rows, torch.arange(head.k), head.k)
    return found


def file_fingerprints(
    checkpoint: Checkpoint, spec: ModelSpec, dtype: torch.dtype
) -> dict[str, int]:
    """Fingerprint of each weight as the file has it, dense ones converted to `dtype`."""
    modules = [m for layer in range(spec.layers) for m in layer_modules(spec, layer).values()]
    with SliceReader() as reader:
        return {
            module.name: _file_fingerprint(checkpoint, reader, spec, module, dtype)
            for module in [*modules, head_module(spec)]
        }


def compare(expected: dict[str, int], ranks: list[dict[str, int]]) -> list[LoadFault]:
    """Every weight whose ranks do not add up to the file."""
    faults = []
    for module, value in expected.items():
        total = sum(rank[module] for rank in ranks) % 2**64
        if total != value:
            faults.append(LoadFault(module=module, expected=value, found=total))
    return faults


def padding_faults(plan: ShardPlan, rank: int, spec: ModelSpec, weights: RankWeights) -> list[str]:
    """Names of this rank's weights with a padded element that is not exactly zero."""
    bad = []
    for layer in range(spec.layers):
        for name, module in layer_modules(spec, layer).items():
            own = feature_slice(plan, module, rank)
            if own.true < own.size and _has_bad_padding(
                weights.layers[layer].products[name], own.true, module.parallel == "row"
            ):
                bad.append(module.name)
    return bad


def _has_bad_padding(packed: PackedWeight, true: int, row_parallel: bool) -> bool:
    values, scales, zeros = unpack(packed)
    padded = values[:, true:] if row_parallel else values[true:]
    if scales is None:
        return bool(padded.any())
    if not scales.isfinite().all():
        return True
    middle = 8 if packed.kind == "int4" else 128
    if zeros is None:
        return bool((padded != middle).any())
    expected = zeros[:, _run_of_feature(packed)[0]]
    expected = expected[:, true:] if row_parallel else expected[true:]
    return bool((padded != expected).any())


def _places(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    module: LinearModule,
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the whole weight that a rank's packed weight holds, in its order.

    -1 marks rows that another rank counts.
    """
    own = feature_slice(plan, module, rank)
    cut = torch.arange(own.offset, own.offset + own.true)
    if module.dimension == "intermediate":
        with SliceReader() as reader:
            order = mlp_order(checkpoint, reader, spec, layer)
        cut = cut if order is None else order[cut]
    elif module.dimension == "kv_heads" and rank:
        counted = max((plan.kv_heads(r).stop for r in range(rank)), default=0) * plan.head_size
        cut = torch.where(cut < counted, -1, cut)
    if module.parallel == "column":
        return cut, torch.arange(module.k)
    return torch.arange(module.n), cut


def _packed_fingerprint(
    packed: PackedWeight, rows: torch.Tensor, columns: torch.Tensor, k: int
) -> int:
    values, scales, zeros = unpack(packed)
    values = values[: len(rows), : len(columns)]
    if scales is None:
        return _fingerprint(values, None, None, rows, columns, k)
    runs = _run_of_feature(packed)[0][: len(columns)]
    spread = (scales[: len(rows)], runs)
    zero = None if zeros is None else (zeros[: len(rows)], runs)
    return _fingerprint(values, spread, zero, rows, columns, k)


def _run_of_feature(packed: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """The run of each activation, and which activations are in any run."""
    lengths = packed.run_offsets.diff()
    run_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths.long())
    feature = torch.arange(packed.packed_k) if packed.gather is None else packed.gather.long()
    out = torch.zeros(packed.k, dtype=torch.int64)
    known = torch.zeros(packed.k, dtype=torch.bool)
    real = feature >= 0
    out[feature[real]] = run_of[real]
    known[feature[real]] = True
    return out, known


def _file_fingerprint(
    checkpoint: Checkpoint,
    reader: SliceReader,
    spec: ModelSpec,
    module: LinearModule,
    dtype: torch.dtype,
) -> int:
    scheme: WeightScheme | None = None
    if spec.quantization is not None:
        scheme = spec.quantization.scheme(module.name)
    all_rows, all_columns = slice(0, module.n), slice(0, module.k)
    rows, columns = torch.arange(module.n), torch.arange(module.k)
    if scheme is None or scheme.format == bitsandbytes.NF4:
        if scheme is None:
            values = dense.read_slice(checkpoint, reader, module.name, all_rows, all_columns)
        else:
            values = bitsandbytes.read_nf4(
                checkpoint, reader, module.name, module.k, all_rows, all_columns
            )
        return _fingerprint(values.to(dtype), None, None, rows, columns, module.k)
    piece = quantized_format(scheme.format).read_slice(
        checkpoint, reader, module.name, scheme, all_rows, all_columns
    )
    zeros = None if piece.zeros is None else (piece.zeros, piece.groups)
    return _fingerprint(piece.codes, (piece.scales, piece.groups), zeros, rows, columns, module.k)


Spread = tuple[torch.Tensor, torch.Tensor]
"""A table [n, g], and for each of k columns its column in the table."""


def _fingerprint(
    values: torch.Tensor,
    scales: Spread | None,
    zeros: Spread | None,
    rows: torch.Tensor,
    columns: torch.Tensor,
    k: int,
) -> int:
    """Sum over elements of a mix of place and content; rows numbered -1 are left out."""
    total = 0
    place_k = columns.numpy().astype(np.uint64)
    for begin in range(0, len(rows), ROWS_AT_A_TIME):
        part = slice(begin, begin + ROWS_AT_A_TIME)
        keep = rows[part] >= 0
        if not bool(keep.any()):
            continue
        place_n = rows[part][keep].numpy().astype(np.uint64) * np.uint64(k)
        mixed = mix(place_n[:, None] + place_k[None, :])
        mixed = mix(mixed ^ _bits(values[part][keep]))
        if scales is not None:
            mixed = mix(mixed ^ _bits(scales[0][part][keep][:, scales[1]].float()))
        if zeros is not None:
            mixed = mix(mixed ^ _bits(zeros[0][part][keep][:, zeros[1]]))
        total += int(mixed.sum(dtype=np.uint64))
    return total % 2**64


def _bits(values: torch.Tensor) -> np.ndarray:
    """The bits of each element as an unsigned 64-bit number."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[values.dtype.itemsize]
    return values.contiguous().view(width).numpy().astype(np.uint64)
