"""compressed-tensors "pack-quantized": W4A16 and W8A16.

`weight_packed` int32 [N, ceil(K*b/32)] along K, low bits first, holding q + 2^(b-1) for a signed q;
`weight_scale` [N, G]; `weight_zero_point` int32 [ceil(N*b/32), G] along N when asymmetric, with the
same offset; `weight_g_idx` int32 [K] with act-order "group"; `weight_shape` int64 [2], the true
global shape. https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import torch

from isobit.errors import DamagedError

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.features import Features
from ..checkpoint.safetensors_file import SliceReader
from .codes import (
    QuantizedSlice,
    WholeWeight,
    column_groups,
    group_index,
    pack_words,
    packed_columns,
    read_packed_rows,
)
from .expected import FLOATS, Expected
from .scheme import WeightScheme

GROUP_INDEX: str | None = "weight_g_idx"


def expected_tensors(module: str, n: int, k: int, scheme: WeightScheme) -> dict[str, Expected]:
    words, groups, b = (torch.int32,), scheme.groups(k), scheme.bits
    tensors = {
        f"{module}.weight_packed": Expected(shape=(n, -(-k * b // 32)), dtypes=words),
        f"{module}.weight_scale": Expected(shape=(n, groups), dtypes=FLOATS),
        f"{module}.weight_shape": Expected(shape=(2,), dtypes=(torch.int64, torch.int32)),
    }
    shape = (-(-n * b // 32), groups)
    zeros = Expected(shape=shape, dtypes=words, required=not scheme.symmetric)
    tensors[f"{module}.weight_zero_point"] = zeros
    if scheme.act_order:
        tensors[f"{module}.weight_g_idx"] = Expected(shape=(k,), dtypes=words)
    return tensors


def read_slice(
    checkpoint: Checkpoint,
    reader: SliceReader,
    module: str,
    scheme: WeightScheme,
    rows: Features,
    columns: Features,
) -> QuantizedSlice:
    """Read a rectangle; a stored code is already unsigned, with zero point 2^(bits-1).

    Raises DamagedError E-QUANT-GIDX, and E-QUANT-ZEROS for other zero points beside a weight that
    the config calls symmetric.
    """
    entries, bits = checkpoint.entries, scheme.bits
    scales = entries[f"{module}.weight_scale"]
    k = entries[f"{module}.weight_packed"].shape[1] * 32 // bits
    g_idx = None
    if scheme.act_order:
        g_idx = group_index(reader, entries.get(f"{module}.{GROUP_INDEX}"), scheme)
    taken, groups = column_groups(columns, scheme, k, g_idx)
    zeros, entry = None, entries.get(f"{module}.weight_zero_point")
    if entry is not None:
        zeros = read_packed_rows(reader, entry, bits, rows, taken)
        if scheme.symmetric:
            _check_middle(entry.name, zeros, bits)
            zeros = None
    return QuantizedSlice(
        stored=packed_columns(reader, entries[f"{module}.weight_packed"], bits, rows, columns),
        scales=reader.read(scales, rows, taken),
        zeros=zeros,
        groups=groups,
    )


def _check_middle(name: str, zeros: torch.Tensor, bits: int) -> None:
    middle = 1 << (bits - 1)
    if not bool((zeros == middle).all()):
        found = sorted(set(zeros.unique().tolist()))
        raise DamagedError(
            "E-QUANT-ZEROS",
            f"{name}: the config says symmetric, but stored zero points are "
            f"{', '.join(map(str, found[:8]))} instead of {middle}. If the weight was quantized "
            "with symmetric=False, set symmetric to false for its config group in config.json",
        )


def pack(module: str, weight: WholeWeight, scheme: WeightScheme) -> dict[str, torch.Tensor]:
    """The tensors that store a weight; inverse of reading all of it."""
    tensors = {
        f"{module}.weight_packed": pack_words(weight.codes, scheme.bits),
        f"{module}.weight_scale": weight.scales,
        f"{module}.weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if weight.zeros is not None:
        tensors[f"{module}.weight_zero_point"] = pack_words(weight.zeros.T, scheme.bits).T
    if scheme.act_order:
        k = weight.codes.shape[1]
        g_idx = weight.g_idx
        if g_idx is None:
            g_idx = (torch.arange(k) // scheme.group_width(k)).int()
        tensors[f"{module}.{GROUP_INDEX}"] = g_idx
    return tensors
