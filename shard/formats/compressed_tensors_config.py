"""The quantization_config of compressed-tensors: config groups, each with targets and a format."""

from __future__ import annotations

from typing import Any

from ...kernels.errors import InputError
from ..quantization import CHANNEL, QuantizationSpec, Rule, WeightScheme
from .settings import warn_unknown

FORMATS = ("pack-quantized", "int-quantized")
_KNOWN = {
    "config_groups", "format", "global_compression_ratio", "ignore", "kv_cache_scheme",
    "quant_method", "quantization_status", "sparsity_config", "transform_config", "version",
}  # fmt: skip
_REFUSED = {
    "kv_cache_scheme": "a quantized KV cache is not supported",
    "sparsity_config": "sparse weights are not supported",
    "transform_config": "online transforms (rotations) are not supported",
}


def quantization(settings: dict[str, Any]) -> QuantizationSpec:
    """Read the config groups; what cannot be read is refused, all of it in one error.

    Raises InputError E-QUANT-SCHEME.
    """
    warn_unknown("compressed-tensors", settings, _KNOWN)
    problems = [why for field, why in _REFUSED.items() if settings.get(field)]
    rules = [Rule(targets=tuple(settings.get("ignore") or ()), scheme=None)]
    groups = settings.get("config_groups") or {}
    for name, group in groups.items():
        form = str(group.get("format") or settings.get("format"))
        found = [f"{name}: {problem}" for problem in _problems(group, form)]
        problems += found
        if not found:
            rules.append(Rule(targets=tuple(group["targets"]), scheme=_scheme(group, form)))
    if not groups:
        problems.append("config_groups is empty: it must say which weights are quantized")
    if problems:
        raise InputError("E-QUANT-SCHEME", "quantization_config:\n  " + "\n  ".join(problems))
    forms = sorted({rule.scheme.format for rule in rules if rule.scheme is not None})
    return QuantizationSpec(
        method="compressed-tensors",
        rules=tuple(rules),
        evidence=f"config says format {', '.join(forms)}",
    )


def _problems(group: dict[str, Any], form: str) -> list[str]:
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    problems = []
    if form not in FORMATS:
        problems.append(f"format {form!r} is not read, only {' and '.join(FORMATS)}")
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    allowed = (8,) if form == "int-quantized" else (4, 8)
    if weights.get("type") != "int" or bits not in allowed:
        problems.append(
            f"{bits} bits of type {weights.get('type')!r}, expected int and "
            + " or ".join(map(str, allowed))
        )
    if strategy not in ("group", "channel"):
        problems.append(f"weight strategy {strategy!r}, expected 'group' or 'channel'")
    size = weights.get("group_size")
    if strategy == "group" and (isinstance(size, bool) or not isinstance(size, int) or size <= 0):
        problems.append(f"group_size is {size!r}, expected a positive integer")
    if weights.get("actorder") not in (None, False, "group", "static", "weight"):
        problems.append(f"actorder {weights['actorder']!r} is not known")
    if group.get("output_activations"):
        problems.append("quantized outputs are not supported")
    if form == "int-quantized":
        if strategy != "channel" or not weights.get("symmetric", True):
            problems.append("int-quantized weights must be symmetric with strategy 'channel'")
        problems += _input_problems(inputs)
    elif inputs:
        problems.append("pack-quantized weights with quantized activations are not supported")
    if not group.get("targets"):
        problems.append("targets is empty")
    return problems


def _input_problems(inputs: dict[str, Any] | None) -> list[str]:
    if not inputs:
        return ["int-quantized weights without input_activations are not supported"]
    problems = []
    if inputs.get("num_bits") != 8 or inputs.get("type") != "int":
        problems.append("input_activations must be 8-bit integers")
    if not inputs.get("symmetric", True):
        problems.append("asymmetric activations are not supported")
    wanted = "token" if inputs.get("dynamic") else "tensor"
    if inputs.get("strategy") != wanted:
        problems.append(f"activation strategy {inputs.get('strategy')!r}, expected {wanted!r}")
    return problems


def _scheme(group: dict[str, Any], form: str) -> WeightScheme:
    weights, activation = group["weights"], "float"
    if form == "int-quantized":
        dynamic = group["input_activations"].get("dynamic")
        activation = "int8-dynamic" if dynamic else "int8-static"
    return WeightScheme(
        format=form,
        bits=weights["num_bits"],
        group_size=weights["group_size"] if weights["strategy"] == "group" else CHANNEL,
        symmetric=bool(weights.get("symmetric", True)),
        act_order=weights.get("actorder") == "group",
        activation=activation,
    )
