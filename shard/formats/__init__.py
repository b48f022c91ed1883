"""Checkpoint formats: what each stores for one weight, and how a slice of it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from isobit.errors import NotSupportedError

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.features import Features
from ..checkpoint.safetensors_file import SliceReader
from . import awq, bitsandbytes, dense, gptq, int_quantized, pack_quantized
from .codes import QuantizedSlice, WholeWeight
from .expected import Expected
from .scheme import WeightScheme

__all__ = ["PACKERS", "QuantizedFormat", "QuantizedSlice", "dense", "quantized_format"]


class QuantizedFormat(Protocol):
    """What a module of this package offers for one quantization format."""

    GROUP_INDEX: str | None
    """Name of the act-order tensor, for formats that have one."""

    def expected_tensors(
        self, module: str, n: int, k: int, scheme: WeightScheme
    ) -> dict[str, Expected]:
        """Every tensor that the weight [n, k] of a module is stored in, by name."""
        ...

    def read_slice(
        self,
        checkpoint: Checkpoint,
        reader: SliceReader,
        module: str,
        scheme: WeightScheme,
        rows: Features,
        columns: Features,
    ) -> QuantizedSlice:
        """Read output features `rows` and input features `columns` of a module's weight."""
        ...


_FORMATS: dict[str, QuantizedFormat] = {
    "pack-quantized": pack_quantized,
    "int-quantized": int_quantized,
    "gptq": gptq,
    "awq": awq,
    bitsandbytes.INT8: bitsandbytes,
    bitsandbytes.NF4: bitsandbytes,
}

PACKERS: dict[str, Callable[[str, WholeWeight, WeightScheme], dict[str, torch.Tensor]]] = {
    "pack-quantized": pack_quantized.pack,
    "int-quantized": int_quantized.pack,
    "gptq": gptq.pack,
    "awq": awq.pack,
}
"""The tensors that store a weight, by full name, in the formats that are written."""


def quantized_format(name: str) -> QuantizedFormat:
    """Return the reader of a format; raises NotSupportedError E-QUANT-METHOD without one."""
    if name not in _FORMATS:
        raise NotSupportedError(
            "E-QUANT-METHOD", f"format {name!r} is not read. Read: {', '.join(_FORMATS)}"
        )
    return _FORMATS[name]
