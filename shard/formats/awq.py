"""AWQ checkpoints as AutoAWQ writes them, version "gemm".

`qweight` int32 [K, N/8] and `qzeros` int32 [G, N/8] along N: nibble i of word c, low first, holds
column 8c + [0,2,4,6,1,3,5,7][i]. `scales` [G, N]. The activation scales are folded into the layer
before. https://github.com/casper-hansen/AutoAWQ
"""

from __future__ import annotations

from typing import Any

import torch

from isobit.errors import NotSupportedError

from ...kernels.weights.stored_codes import StoredCodes
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.features import Features, bounds, count, part, places
from ..checkpoint.safetensors_file import SliceReader, TensorEntry
from ..patterns import shown
from .codes import QuantizedSlice, WholeWeight, column_groups, pack_words
from .dynamic import dynamic_rules
from .expected import FLOATS, Expected
from .scheme import HEAD, LINEAR, QuantizationSpec, Rule, Targets, WeightScheme
from .settings import Problems, bits, flag, group_size, strings, text, warn_unknown

COLUMN_OF_NIBBLE = (0, 2, 4, 6, 1, 3, 5, 7)
NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)
PER_WORD = 8
GROUP_INDEX: str | None = None
_KNOWN = {
    "backend", "bits", "checkpoint_format", "desc_act", "do_fuse", "duo_scaling", "dynamic",
    "exllama_config", "format", "fuse_max_seq_len", "group_size", "lm_head", "meta", "method",
    "modules_to_fuse", "modules_to_not_convert", "pack_dtype", "q_group_size", "quant_method",
    "version", "w_bit", "zero_point",
}  # fmt: skip


def quantization(settings: dict[str, Any]) -> QuantizationSpec:
    """Read an AWQ config; GPTQModel leaves modules dense by `dynamic` instead of AutoAWQ's
    `modules_to_not_convert`, parts of names.

    Raises DamagedError and NotSupportedError E-QUANT-SCHEME and E-QUANT-PATTERN.
    """
    names = {"w_bit": "bits", "q_group_size": "group_size"}
    settings = {**settings, **{new: settings[old] for old, new in names.items() if old in settings}}
    warn_unknown("awq", settings, _KNOWN)
    problems = Problems()
    problems.get(_check_version, settings)
    kept = problems.get(strings, "awq", settings, "modules_to_not_convert")
    whole = problems.get(_scheme, settings)
    if whole is None:
        problems.raise_all()
    dynamic = problems.get(dynamic_rules, "awq", settings, _scheme)
    problems.raise_all()
    return QuantizationSpec(
        method="awq",
        rules=(
            Rule(targets=Targets(names=HEAD.names, parts=kept or ()), scheme=None),
            *(dynamic or ()),
            Rule(targets=LINEAR, scheme=whole),
        ),
        evidence="config says awq version 'gemm'",
    )


def _check_version(settings: dict[str, Any]) -> None:
    version = (text("awq", settings, "version") or "gemm").lower()
    if version != "gemm":
        raise NotSupportedError(
            "E-QUANT-SCHEME",
            f"awq: version {shown(version)} is another layout and not read. Read: gemm. AutoAWQ "
            'writes it with quant_config {"version": "GEMM"}',
        )


def _scheme(settings: dict[str, Any]) -> WeightScheme:
    zero_point = flag("awq", settings, "zero_point", True)
    return scheme_of("awq", settings, symmetric=not zero_point)


def scheme_of(where: str, settings: dict[str, Any], symmetric: bool) -> WeightScheme:
    """The scheme that `bits` and `group_size` describe."""
    problems = Problems()
    width = problems.get(bits, where, settings, (4,))
    group = problems.get(group_size, where, settings)
    problems.raise_all()
    assert width is not None
    assert group is not None
    return WeightScheme(format="awq", bits=width, group_size=group, symmetric=symmetric)


def expected_tensors(module: str, n: int, k: int, scheme: WeightScheme) -> dict[str, Expected]:
    words, groups = (torch.int32,), scheme.groups(k)
    return {
        f"{module}.qweight": Expected(shape=(k, -(-n // PER_WORD)), dtypes=words),
        f"{module}.qzeros": Expected(
            shape=(groups, -(-n // PER_WORD)), dtypes=words, required=not scheme.symmetric
        ),
        f"{module}.scales": Expected(shape=(groups, n), dtypes=FLOATS),
    }


def read_slice(
    checkpoint: Checkpoint,
    reader: SliceReader,
    module: str,
    scheme: WeightScheme,
    rows: Features,
    columns: Features,
) -> QuantizedSlice:
    """Read a rectangle; AutoAWQ stores symmetric zero points too, so they are read when present."""
    entries = checkpoint.entries
    k = entries[f"{module}.qweight"].shape[0]
    taken, groups = column_groups(columns, scheme, k, None)
    zeros = entries.get(f"{module}.qzeros")
    return QuantizedSlice(
        stored=_stored(reader, entries[f"{module}.qweight"], rows, columns),
        scales=reader.read(entries[f"{module}.scales"], taken, rows).T,
        zeros=None if zeros is None else _stored(reader, zeros, rows, taken).codes(),
        groups=groups,
    )


def pack(module: str, weight: WholeWeight, scheme: WeightScheme) -> dict[str, torch.Tensor]:
    """The tensors that store a weight; inverse of reading all of it."""
    zeros = weight.zeros
    if zeros is None:
        zeros = torch.full(weight.scales.shape, 1 << (scheme.bits - 1), dtype=torch.uint8)
    return {
        f"{module}.qweight": _pack_words(weight.codes.T),
        f"{module}.qzeros": _pack_words(zeros.T),
        f"{module}.scales": weight.scales.T,
    }


def _pack_words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [*, N] -> int32 [*, ceil(N/8)] in AWQ's order."""
    rows, n = codes.shape
    words = -(-n // PER_WORD)
    padded = torch.zeros((rows, words * PER_WORD), dtype=torch.uint8)
    padded[:, :n] = codes
    ordered = padded.view(rows, words, PER_WORD)[:, :, COLUMN_OF_NIBBLE]
    return pack_words(ordered.reshape(rows, -1), 4)


def _stored(
    reader: SliceReader, entry: TensorEntry, rows: Features, features: Features
) -> StoredCodes:
    """Codes [n, features] of a matrix [features, N/8] in AWQ's order."""
    begin, end = bounds(rows)
    first = begin // PER_WORD
    words = slice(first, -(-end // PER_WORD))
    return StoredCodes(
        bits=4,
        k_first=True,
        along_k=False,
        rows=places(rows, first * PER_WORD),
        columns=torch.arange(count(features)),
        read=lambda begin, end: reader.read(entry, part(features, begin, end), words),
        nibbles=NIBBLE_OF_COLUMN,
        divisible=isinstance(features, slice),
    )
