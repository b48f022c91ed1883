"""Output formats: which weights each can store, and the config that other engines read."""

from __future__ import annotations

from typing import Any, Literal, get_args

from .awq import Awq
from .base import OutputFormat, Schemes
from .compressed_tensors import CompressedTensors
from .gptq import Gptq

__all__ = [
    "FORMATS",
    "Format",
    "OutputFormat",
    "Schemes",
    "output_format",
    "quantization_config",
    "repeated_in",
]

Format = Literal["compressed-tensors", "gptq", "gptq_v2", "awq"]
FORMATS: tuple[str, ...] = get_args(Format)


def output_format(name: Format) -> OutputFormat:
    """Return a format by the name that `--format` gives it."""
    formats: dict[str, OutputFormat] = {
        "compressed-tensors": CompressedTensors(),
        "gptq": Gptq(label="gptq"),
        "gptq_v2": Gptq(label="gptq_v2"),
        "awq": Awq(),
    }
    return formats[name]


def quantization_config(schemes: Schemes) -> dict[str, Any]:
    """The quantization_config of modules whose schemes one format gave."""
    scheme = next(scheme for scheme in schemes.values() if scheme is not None)
    if scheme.format == "gptq":
        return output_format("gptq" if scheme.zero_offset else "gptq_v2").config(schemes)
    return output_format("awq" if scheme.format == "awq" else "compressed-tensors").config(schemes)


def repeated_in(quantization: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Other JSON files that repeat a quantization_config, by name: GPTQ's tools have one."""
    return {"quantize_config.json": quantization} if quantization["quant_method"] == "gptq" else {}
