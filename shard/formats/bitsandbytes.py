"""bitsandbytes: int8 with one scale per output row, and nf4 in blocks.

int8: `weight` int8 [N, K], `SCB` float32 [N], W = weight * SCB / 127. It runs as W8A16: activations
stay in the model's dtype, so there are no outlier columns. nf4: `weight` uint8 [N*K/2, 1]
row-major, the first element in the high nibble, with `absmax` per block; it is converted to a dense
weight while loading. https://github.com/bitsandbytes-foundation/bitsandbytes
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import torch

from isobit.errors import DamagedError, InputError, NotSupportedError

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.features import Features, bounds, count
from ..checkpoint.safetensors_file import SliceReader
from ..patterns import check_pattern
from .codes import QuantizedSlice, byte_codes
from .expected import ANY, FLOATS, Expected
from .scheme import (
    CHANNEL,
    HEAD,
    LINEAR,
    QuantizationSpec,
    Rule,
    Targets,
    WeightScheme,
)
from .settings import MOST_PATTERNS, Problems, check_count, flag, strings, text, warn_unknown

log = logging.getLogger("isobit.shard")

GROUP_INDEX: str | None = None
INT8, NF4 = "bnb-int8", "bnb-nf4"
STATE = "weight.quant_state.bitsandbytes__nf4"
_KNOWN = {
    "_load_in_4bit", "_load_in_8bit", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight", "llm_int8_skip_modules", "llm_int8_threshold", "load_in_4bit",
    "load_in_8bit", "quant_method",
}  # fmt: skip


def quantization(settings: dict[str, Any]) -> QuantizationSpec:
    """Read a bitsandbytes config. Raises DamagedError and NotSupportedError E-QUANT-SCHEME."""
    warn_unknown("bitsandbytes", settings, _KNOWN)
    problems = Problems()
    scheme = problems.get(_scheme, settings)
    kept = problems.get(_kept, settings)
    problems.raise_all()
    assert scheme is not None
    assert kept is not None
    if scheme.format == NF4:
        log.warning("bitsandbytes nf4: weights are converted to the model's dtype while loading")
    return QuantizationSpec(
        method="bitsandbytes",
        rules=(Rule(targets=kept, scheme=None), Rule(targets=LINEAR, scheme=scheme)),
        evidence=f"config says {'load_in_4bit' if scheme.format == NF4 else 'load_in_8bit'}",
    )


def _scheme(settings: dict[str, Any]) -> WeightScheme:
    where = "bitsandbytes"
    four, eight = (flag(where, settings, f"load_in_{bits}bit", False) for bits in (4, 8))
    if four and eight:
        raise InputError(
            "E-QUANT-SCHEME",
            "bitsandbytes: load_in_4bit and load_in_8bit are both true, which transformers refuses "
            "too. Set the one to false that is not how the weights were saved",
        )
    if four:
        kind = text(where, settings, "bnb_4bit_quant_type") or "fp4"
        storage = text(where, settings, "bnb_4bit_quant_storage") or "uint8"
        if kind != "nf4" or storage != "uint8":
            raise NotSupportedError(
                "E-QUANT-SCHEME",
                f"bitsandbytes: {kind:.80} stored as {storage:.80} is not read. Read: nf4 stored "
                "as uint8, and int8. Load the original model in transformers with "
                'bnb_4bit_quant_type="nf4", or with load_in_8bit, and save it',
            )
        return WeightScheme(format=NF4, bits=4, group_size=CHANNEL)
    if eight:
        return WeightScheme(format=INT8, bits=8, group_size=CHANNEL)
    raise DamagedError(
        "E-QUANT-SCHEME", "bitsandbytes: neither load_in_8bit nor load_in_4bit is set"
    )


def _kept(settings: dict[str, Any]) -> Targets:
    """Modules that stay dense by `llm_int8_skip_modules`, matched as transformers does: the end of
    a name, or a pattern from its start up to a dot (transformers should_convert_module)."""
    where, problems = "bitsandbytes: llm_int8_skip_modules", Problems()
    names = strings("bitsandbytes", settings, "llm_int8_skip_modules")
    check_count(where, "names", len(names), MOST_PATTERNS)
    for name in names:
        problems.get(check_pattern, where, name)
    problems.raise_all()
    ends = [rf"(?:{name})(?:\.|$)" for name in names]
    dots = [rf"(?:{name})" for name in names if name.endswith(".")]
    for pattern in ends:
        problems.get(check_pattern, where, pattern)
    problems.raise_all()
    return Targets(names=HEAD.names, suffixes=names, patterns=(*ends, *dots))


def expected_tensors(module: str, n: int, k: int, scheme: WeightScheme) -> dict[str, Expected]:
    if scheme.format == INT8:
        return {
            f"{module}.weight": Expected(shape=(n, k), dtypes=(torch.int8,)),
            f"{module}.SCB": Expected(shape=(n,), dtypes=(torch.float32,)),
            f"{module}.weight_format": Expected(shape=(), dtypes=(torch.uint8,), required=False),
        }
    codes = (torch.uint8,)
    weight = f"{module}.weight"
    return {
        weight: Expected(shape=((n * k + 1) // 2, 1), dtypes=codes),
        f"{weight}.absmax": Expected(shape=(ANY,), dtypes=FLOATS + codes),
        f"{weight}.quant_map": Expected(shape=(16,), dtypes=FLOATS),
        f"{module}.{STATE}": Expected(shape=(ANY,), dtypes=codes),
        f"{weight}.nested_absmax": Expected(shape=(ANY,), dtypes=FLOATS, required=False),
        f"{weight}.nested_quant_map": Expected(shape=(256,), dtypes=FLOATS, required=False),
    }


def read_slice(
    checkpoint: Checkpoint,
    reader: SliceReader,
    module: str,
    scheme: WeightScheme,
    rows: Features,
    columns: Features,
) -> QuantizedSlice:
    """Read a rectangle of an int8 weight (nf4 has no codes that a kernel takes: see read_nf4)."""
    assert scheme.format == INT8
    entries = checkpoint.entries
    scb = reader.read(entries[f"{module}.SCB"])[rows]
    return QuantizedSlice(
        stored=byte_codes(reader, entries[f"{module}.weight"], rows, columns),
        scales=(scb / 127)[:, None],
        zeros=None,
        groups=torch.zeros(count(columns), dtype=torch.int64),
    )


def read_nf4(
    checkpoint: Checkpoint,
    reader: SliceReader,
    module: str,
    k: int,
    rows: Features,
    columns: Features,
) -> torch.Tensor:
    """Read a rectangle of an nf4 weight with K = k as dense float32 values.

    Codes are read for the rows in question; block scales, 1/16 of the bytes, as a whole. Raises
    DamagedError E-CKPT-TENSOR for companions of the weight that are absent or have another length
    than its blocks, E-QUANT-SCHEME for a state that cannot be read.
    """
    entries = checkpoint.entries
    state = _state(checkpoint, reader, module, k)
    begin, end = bounds(rows)
    first, last = begin * k // 2, -(-end * k // 2)
    packed = reader.read(entries[f"{module}.weight"], slice(first, last), slice(0, 1)).flatten()
    nibbles = torch.stack((packed >> 4, packed & 0xF), dim=1).flatten().long()
    nibbles = nibbles[begin * k - 2 * first :][: (end - begin) * k]
    flat = torch.arange(begin * k, end * k) // state.block
    absmax = _absmax(checkpoint, reader, module, state)[flat]
    table = reader.read(entries[f"{module}.weight.quant_map"])
    dense = (table[nibbles] * absmax).view(end - begin, k)
    dense = dense if isinstance(rows, slice) else dense[rows - begin]
    return dense[:, columns]


@dataclass(frozen=True, kw_only=True)
class _State:
    """What the state of an nf4 weight says: elements that share a scale, and, with double
    quantization, scales that share a scale of their own (else 0) and what is added to them.
    """

    block: int
    nested_block: int
    nested_offset: float


def _state(checkpoint: Checkpoint, reader: SliceReader, module: str, k: int) -> _State:
    """Read the state of a weight with K = k, and check the companions of the weight against it."""
    prefix, name, entries = f"{module}.weight.", f"{module}.{STATE}", checkpoint.entries
    checkpoint.require([f"{module}.weight", prefix + "absmax", prefix + "quant_map", name])
    n = 2 * entries[f"{module}.weight"].shape[0] // k
    state = _parsed_state(name, bytes(reader.read(entries[name]).tolist()), [n, k])
    blocks = -(-n * k // state.block)
    lengths = {"absmax": blocks, "quant_map": 16}
    if state.nested_block:
        checkpoint.require([prefix + "nested_absmax", prefix + "nested_quant_map"])
        lengths["nested_absmax"] = -(-blocks // state.nested_block)
        lengths["nested_quant_map"] = 256
    wrong = [
        f"{prefix}{part}: shape {list(entries[prefix + part].shape)}, expected [{length}]: the "
        f"weight is [{n}, {k}] and {name} says {state.block} elements a block"
        for part, length in lengths.items()
        if entries[prefix + part].shape != (length,)
    ]
    if wrong:
        raise DamagedError("E-CKPT-TENSOR", "\n".join(wrong))
    dtype = entries[prefix + "absmax"].dtype
    if (dtype == torch.uint8) != bool(state.nested_block):
        raise DamagedError(
            "E-QUANT-SCHEME",
            f"{prefix}absmax is {dtype}, but {name} says "
            + ("double quantization (uint8)" if state.nested_block else "plain scales (floats)"),
        )
    return state


def _parsed_state(name: str, content: bytes, shape: list[int]) -> _State:
    """Parse the JSON of a state; `shape` is that of the weight."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError("E-QUANT-SCHEME", f"{name}: not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise DamagedError("E-QUANT-SCHEME", f"{name}: {fields!r}, expected a map (JSON object)")
    nested = "nested_blocksize" in fields
    checks = {"quant_type": ("nf4", fields.get("quant_type") == "nf4")}
    for field in ("blocksize", *(("nested_blocksize",) if nested else ())):
        checks[field] = ("a positive integer", _is_size(fields.get(field)))
    checks["shape"] = (str(shape), fields.get("shape", shape) == shape)
    if nested:
        checks["nested_offset"] = ("a number", _is_number(fields.get("nested_offset")))
    for field, (expected, right) in checks.items():
        if not right:
            raise DamagedError(
                "E-QUANT-SCHEME",
                f"{name}: {field} is {fields.get(field)!r}, expected {expected}",
            )
    return _State(
        block=fields["blocksize"],
        nested_block=fields["nested_blocksize"] if nested else 0,
        nested_offset=float(fields["nested_offset"]) if nested else 0.0,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _absmax(
    checkpoint: Checkpoint, reader: SliceReader, module: str, state: _State
) -> torch.Tensor:
    """Scales of all blocks, float32; with double quantization they are 8-bit codes themselves."""
    entries, prefix = checkpoint.entries, f"{module}.weight."
    absmax = reader.read(entries[prefix + "absmax"])
    if not state.nested_block:
        return absmax.float()
    table = reader.read(entries[prefix + "nested_quant_map"])
    outer = reader.read(entries[prefix + "nested_absmax"])
    blocks = torch.arange(len(absmax)) // state.nested_block
    return table[absmax.long()] * outer[blocks] + state.nested_offset
