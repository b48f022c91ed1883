"""From the quantization settings of a checkpoint to a QuantizationSpec, one reader per method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...kernels.errors import NotSupportedError
from ..quantization import QuantizationSpec
from . import awq, bitsandbytes, compressed_tensors_config, gptq
from .settings import mapping, text

_METHODS: dict[str, Callable[[dict[str, Any]], QuantizationSpec]] = {
    "gptq": gptq.quantization,
    "awq": awq.quantization,
    "compressed-tensors": compressed_tensors_config.quantization,
    "bitsandbytes": bitsandbytes.quantization,
}


def quantization_from_config(
    config: dict[str, Any], quantize_config: dict[str, Any] | None
) -> QuantizationSpec | None:
    """Read `quantization_config` of config.json, or quantize_config.json; None for a dense model.

    Where both files exist config.json decides, and fields that it lacks come from the other.

    Raises InputError E-QUANT-METHOD for a method that isobit does not read, E-QUANT-SCHEME for
    settings within a known method that it does not.
    """
    found = mapping("config.json", config, "quantization_config")
    found = found or mapping("config.json", config, "compression_config")
    if not found and quantize_config is None:
        return None
    settings = {**(quantize_config or {}), **found}
    where = "quantization_config"
    method = text(where, settings, "quant_method") or text(where, settings, "method")
    if method is None:
        method = _implied_method(settings)
    if method not in _METHODS:
        raise NotSupportedError(
            "E-QUANT-METHOD",
            f"quantization method {method!r} is not read. Read: {', '.join(_METHODS)}. Take the "
            "original model and quantize it again, for example with isobit quantize",
        )
    return _METHODS[method](settings)


def _implied_method(settings: dict[str, Any]) -> str:
    """Old files name no method: AutoAWQ's have zero_point and version, AutoGPTQ's desc_act."""
    if "zero_point" in settings and "version" in settings:
        return "awq"
    if "desc_act" in settings or "sym" in settings:
        return "gptq"
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return "(none named)"
