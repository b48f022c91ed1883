"""Checkpoint formats: what each stores for one weight, and how a slice of it is read."""

from __future__ import annotations

from typing import Protocol

from ...kernels.errors import InputError
from ..checkpoint import Checkpoint
from ..quantization import WeightScheme
from ..safetensors_file import SliceReader
from . import compressed_tensors, dense
from .codes import QuantizedSlice


class QuantizedFormat(Protocol):
    """What a module of this package offers for one quantization format."""

    def expected_tensors(
        self, module: str, n: int, k: int, scheme: WeightScheme
    ) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that the weight [n, k] of a module is stored in."""
        ...

    def read_slice(
        self,
        checkpoint: Checkpoint,
        reader: SliceReader,
        module: str,
        scheme: WeightScheme,
        rows: slice,
        columns: slice,
    ) -> QuantizedSlice:
        """Read output features `rows` and input features `columns` of a module's weight."""
        ...


_FORMATS: dict[str, QuantizedFormat] = {"pack-quantized": compressed_tensors}


def quantized_format(name: str) -> QuantizedFormat:
    """Return the reader of a format; raises InputError E-QUANT-METHOD for one that is not read."""
    if name not in _FORMATS:
        raise InputError(
            "E-QUANT-METHOD", f"format {name!r} is not read. Read: {', '.join(_FORMATS)}"
        )
    return _FORMATS[name]


__all__ = ["QuantizedFormat", "QuantizedSlice", "dense", "quantized_format"]
