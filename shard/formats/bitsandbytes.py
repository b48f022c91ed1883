"""bitsandbytes: int8 with one scale per output row, and nf4 in blocks.

int8: `weight` int8 [N, K], `SCB` float32 [N], W = weight * SCB / 127. It runs as W8A16: activations
stay in the model's dtype, so there are no outlier columns. nf4: `weight` uint8 [N*K/2, 1]
row-major, the first element in the high nibble, with `absmax` per block; it is converted to a dense
weight while loading. https://github.com/bitsandbytes-foundation/bitsandbytes
"""

from __future__ import annotations

import json
import logging
from typing import Any

import torch

from ...kernels.errors import InputError
from ..checkpoint import Checkpoint
from ..quantization import CHANNEL, QuantizationSpec, Rule, WeightScheme
from ..safetensors_file import Features, SliceReader, bounds
from .codes import QuantizedSlice
from .expected import Expected
from .settings import warn_unknown

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
    """Read a bitsandbytes config. Raises InputError E-QUANT-SCHEME."""
    warn_unknown("bitsandbytes", settings, _KNOWN)
    if settings.get("load_in_4bit"):
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        if kind != "nf4" or settings.get("bnb_4bit_quant_storage", "uint8") != "uint8":
            raise InputError(
                "E-QUANT-SCHEME",
                f"bitsandbytes: {kind} stored as {settings.get('bnb_4bit_quant_storage', 'uint8')} "
                "is not read. Read: nf4 stored as uint8, and int8",
            )
        log.warning("bitsandbytes nf4: weights are converted to the model's dtype while loading")
        scheme = WeightScheme(format=NF4, bits=4, group_size=CHANNEL)
    elif settings.get("load_in_8bit"):
        scheme = WeightScheme(format=INT8, bits=8, group_size=CHANNEL)
    else:
        raise InputError(
            "E-QUANT-SCHEME", "bitsandbytes: neither load_in_8bit nor load_in_4bit is set"
        )
    kept = ("lm_head", *(f"in:{name}" for name in settings.get("llm_int8_skip_modules") or ()))
    return QuantizationSpec(
        method="bitsandbytes",
        rules=(Rule(targets=kept, scheme=None), Rule(targets=("Linear",), scheme=scheme)),
        evidence=f"config says {'load_in_4bit' if scheme.format == NF4 else 'load_in_8bit'}",
    )


def expected_tensors(module: str, n: int, k: int, scheme: WeightScheme) -> dict[str, Expected]:
    if scheme.format == INT8:
        return {
            f"{module}.weight": Expected(shape=(n, k), dtypes=(torch.int8,)),
            f"{module}.SCB": Expected(shape=(n,), dtypes=(torch.float32,)),
            f"{module}.weight_format": Expected(shape=(), dtypes=(torch.uint8,), required=False),
        }
    weight = Expected(shape=((n * k + 1) // 2, 1), dtypes=(torch.uint8,))
    return {f"{module}.weight": weight}


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
    values = reader.read(entries[f"{module}.weight"], rows, columns)
    scb = reader.read(entries[f"{module}.SCB"])[rows]
    return QuantizedSlice(
        codes=values.view(torch.uint8) ^ 128,
        scales=(scb / 127)[:, None],
        zeros=None,
        groups=torch.zeros(values.shape[1], dtype=torch.int64),
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

    Codes are read for the rows in question; block scales, 1/16 of the bytes, as a whole.
    """
    entries = checkpoint.entries
    state = json.loads(bytes(reader.read(entries[f"{module}.{STATE}"]).tolist()))
    block = int(state["blocksize"])
    begin, end = bounds(rows)
    first, last = begin * k // 2, -(-end * k // 2)
    packed = reader.read(entries[f"{module}.weight"], slice(first, last), slice(0, 1)).flatten()
    nibbles = torch.stack((packed >> 4, packed & 0xF), dim=1).flatten().long()
    nibbles = nibbles[begin * k - 2 * first :][: (end - begin) * k]
    flat = torch.arange(begin * k, end * k) // block
    absmax = _absmax(checkpoint, reader, module, state)[flat]
    table = reader.read(entries[f"{module}.weight.quant_map"])
    dense = (table[nibbles] * absmax).view(end - begin, k)
    dense = dense if isinstance(rows, slice) else dense[rows - begin]
    return dense[:, columns]


def _absmax(
    checkpoint: Checkpoint, reader: SliceReader, module: str, state: dict[str, Any]
) -> torch.Tensor:
    """Scales of all blocks, float32; with double quantization they are 8-bit codes themselves."""
    entries, prefix = checkpoint.entries, f"{module}.weight."
    absmax = reader.read(entries[prefix + "absmax"])
    if "nested_blocksize" not in state:
        return absmax.float()
    table = reader.read(entries[prefix + "nested_quant_map"])
    outer = reader.read(entries[prefix + "nested_absmax"])
    blocks = torch.arange(len(absmax)) // int(state["nested_blocksize"])
    return table[absmax.long()] * outer[blocks] + float(state["nested_offset"])
