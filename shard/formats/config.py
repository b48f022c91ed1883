"""From the quantization settings of a checkpoint to a QuantizationSpec, one reader per method."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isobit.errors import DamagedError, InputError, NotSupportedError

from ..checkpoint.settings import read_json
from ..patterns import shown
from . import auto_round, awq, bitsandbytes, compressed_tensors_config, gptq
from .scheme import QuantizationSpec
from .settings import check_depth, mapping, text

log = logging.getLogger("isobit.shard")

QUANTIZE_CONFIG = "quantize_config.json"
MODELOPT_CONFIG = "hf_quant_config.json"
_METHODS: dict[str, Callable[[dict[str, Any]], QuantizationSpec]] = {
    "gptq": gptq.quantization,
    "awq": awq.quantization,
    "compressed-tensors": compressed_tensors_config.quantization,
    "bitsandbytes": bitsandbytes.quantization,
    "auto-round": auto_round.quantization,
    "intel/auto-round": auto_round.quantization,
}
_READ = ("gptq", "awq", "compressed-tensors", "bitsandbytes", "auto-round")
_AGAIN = (
    "Take the original model and quantize it again, for example with isobit quantize, or take a "
    "checkpoint in one of these formats"
)
# Two names of one setting, old and new; only settings that decide how weights are read.
_ALIASES = {
    "checkpoint_format": "format",
    "method": "quant_method",
    "w_bit": "bits",
    "q_group_size": "group_size",
}
_DECISIVE = (
    "quant_method", "format", "bits", "group_size", "sym", "desc_act", "zero_point", "version",
    "lm_head", "dynamic", "modules_to_not_convert", "modules_in_block_to_quantize",
    "is_marlin_format",
)  # fmt: skip


def quantization_from_config(
    config: dict[str, Any], quantize_config: dict[str, Any] | None
) -> QuantizationSpec | None:
    """Read `quantization_config` of config.json, or quantize_config.json; None for a dense model.

    Where both files exist config.json decides, and fields that it lacks come from the other.

    Raises NotSupportedError E-QUANT-METHOD for a method that isobit does not read, InputError for
    one that is misspelled; DamagedError and NotSupportedError E-QUANT-SCHEME and E-QUANT-PATTERN
    for settings within a known method.
    """
    field = next((name for name in _FIELDS if config.get(name) is not None), _FIELDS[0])
    _refuse_nested(config)
    found = mapping("config.json", config, field)
    if not found and not quantize_config:
        if config.get(field) is None:
            return None
        raise DamagedError(
            "E-QUANT-SCHEME",
            f"config.json: {field} is {{}}, which names no method. Remove it if the weights are "
            "not quantized; else it has to say how they are",
        )
    settings = {**(quantize_config or {}), **found}
    check_depth(settings)
    method = text(field, settings, "quant_method") or text(field, settings, "method")
    if method is None:
        method = _implied_method(settings)
    if method not in _METHODS:
        if (spelled := method.lower().replace("_", "-")) in _METHODS:
            raise InputError(
                "E-QUANT-METHOD",
                f"quant_method {shown(method)} is spelled {spelled!r} where it is read, by "
                "transformers too. Correct it in the file",
            )
        raise not_supported(_with_algorithm(method, settings))
    read = _METHODS[method](settings)
    return read if found else dataclasses.replace(read, file=QUANTIZE_CONFIG)


_FIELDS = ("quantization_config", "compression_config")


def not_supported(method: str) -> NotSupportedError:
    """The error for a quantization method that isobit does not read."""
    return NotSupportedError(
        "E-QUANT-METHOD",
        f"quantization method {shown(method)} is not supported. Read: {', '.join(_READ)}. {_AGAIN}",
    )


def companion_settings(folder: Path) -> dict[str, Any] | None:
    """The contents of quantize_config.json, None where a folder has none.

    Raises NotSupportedError E-QUANT-METHOD for weights that hf_quant_config.json of ModelOpt
    describes, and as read_json. Warns where that file describes a KV cache alone.
    """
    modelopt = folder / MODELOPT_CONFIG
    if modelopt.is_file():
        described = read_json(modelopt).get("quantization")
        algorithms = described if isinstance(described, dict) else {}
        weights, cache = algorithms.get("quant_algo"), algorithms.get("kv_cache_quant_algo")
        if weights:
            named = [str(name) for name in (weights, cache) if name]
            raise not_supported(f"modelopt {' with '.join(named)}")
        if cache:
            log.warning(
                "%s: kv_cache_quant_algo %s is ignored: the KV cache is kept in the model's dtype",
                MODELOPT_CONFIG,
                shown(cache),
            )
    quantize = folder / QUANTIZE_CONFIG
    return read_json(quantize) if quantize.is_file() else None


def check_agreement(config: dict[str, Any], quantize_config: dict[str, Any] | None) -> None:
    """Raise InputError E-QUANT-LABEL where config.json and quantize_config.json say two things.

    Engines differ in which of the files they believe, so what the weights are is anyone's guess.
    """
    if apart := disagreements(config, quantize_config):
        raise InputError(
            "E-QUANT-LABEL",
            f"config.json and {QUANTIZE_CONFIG} disagree: "
            + "; ".join(
                f"{key} is {shown(one)} in config.json and {shown(other)} in {QUANTIZE_CONFIG}"
                for key, (one, other) in apart.items()
            )
            + f". Engines differ in which file they believe: correct the wrong one, or remove "
            f"{QUANTIZE_CONFIG}, which transformers does not read",
        )


def disagreements(
    config: dict[str, Any], quantize_config: dict[str, Any] | None
) -> dict[str, tuple[Any, Any]]:
    """Every decisive setting that has two values: that of config.json, and the other."""
    found = next((config[name] for name in _FIELDS if config.get(name)), None)
    if not isinstance(found, dict):
        return {}
    one, other = _decisive(found), _decisive(quantize_config or {})
    both = [key for key in _DECISIVE if key in one and key in other]
    return {key: (one[key], other[key]) for key in both if one[key] != other[key]}


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under one name each; a value of None or {} says nothing."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if value not in (None, {}, []):
            values[_ALIASES.get(key, key)] = value.lower() if isinstance(value, str) else value
    return values


def _refuse_nested(config: dict[str, Any]) -> None:
    """Refuse settings where a text model has none: transformers does not read them there either."""
    for part, inner in config.items():
        if isinstance(inner, dict) and part not in _FIELDS:
            for field in _FIELDS:
                if inner.get(field) is not None and config.get(field) is None:
                    raise InputError(
                        "E-QUANT-SCHEME",
                        f"config.json: {field} stands in {part}, where this architecture has "
                        f"none. Move it to the top level of config.json",
                    )


def _implied_method(settings: dict[str, Any]) -> str:
    """Old files name no method: AutoAWQ's have zero_point and version, AutoGPTQ's desc_act."""
    if "zero_point" in settings and "version" in settings:
        return "awq"
    if "desc_act" in settings or "sym" in settings:
        return "gptq"
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return "(none named)"


def _with_algorithm(method: str, settings: dict[str, Any]) -> str:
    """A method with the field by which it tells its variants apart: modelopt NVFP4, fp8 e4m3."""
    for field in ("quant_algo", "fmt", "quant_type"):
        if isinstance(settings.get(field), str):
            return f"{method} {settings[field]}"
    return method
