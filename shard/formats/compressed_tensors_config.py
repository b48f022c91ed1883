"""The quantization_config of compressed-tensors: config groups, each with targets and a format."""

from __future__ import annotations

from typing import Any

from ...kernels.errors import InputError
from ..quantization import CHANNEL, QuantizationSpec, Rule, WeightScheme
from .settings import flag, mapping, targets, text, warn_unknown

FORMATS = ("pack-quantized", "int-quantized")
_KNOWN = {
    "config_groups", "dequantize", "format", "global_compression_ratio", "ignore",
    "kv_cache_scheme", "quant_method", "quantization_status", "run_compressed",
    "sparsity_config", "transform_config", "version",
}  # fmt: skip
_KNOWN_OF_GROUP = {"format", "input_activations", "output_activations", "targets", "weights"}
_KNOWN_OF_ARGUMENTS = {
    "actorder", "block_structure", "dynamic", "group_size", "num_bits", "observer",
    "observer_kwargs", "scale_dtype", "strategy", "symmetric", "type", "zp_dtype",
}  # fmt: skip
_REFUSED = {
    "kv_cache_scheme": "a quantized KV cache is not supported",
    "transform_config": "online transforms (rotations) are not supported",
}


def quantization(settings: dict[str, Any]) -> QuantizationSpec:
    """Read the config groups; what cannot be read is refused, all of it in one error.

    Raises InputError E-QUANT-SCHEME.
    """
    warn_unknown("compressed-tensors", settings, _KNOWN)
    problems = [why for field, why in _REFUSED.items() if settings.get(field)]
    rules = []
    try:
        sparse = mapping("compressed-tensors", settings, "sparsity_config")
        if sparse and sparse.get("format") != "dense":
            problems.append(
                f"sparsity_config: format {sparse.get('format')!r} is not read, only 'dense': "
                "sparse weights are not supported"
            )
        ignored = targets("compressed-tensors", settings, "ignore")
        rules.append(Rule(targets=ignored, scheme=None))
        groups = mapping("compressed-tensors", settings, "config_groups")
        if not groups:
            problems.append("config_groups is empty: it must say which weights are quantized")
    except InputError as error:
        problems.append(error.message)
        groups = {}
    for name in groups:
        try:
            group = mapping("config_groups", groups, name)
            rules.append(_rule(name, group, text("compressed-tensors", settings, "format")))
        except InputError as error:
            problems += error.message.splitlines()
    if problems:
        raise InputError("E-QUANT-SCHEME", "quantization_config:\n  " + "\n  ".join(problems))
    forms = sorted({rule.scheme.format for rule in rules if rule.scheme is not None})
    return QuantizationSpec(
        method="compressed-tensors",
        rules=tuple(rules),
        evidence=f"config says format {', '.join(forms)}",
    )


def _rule(name: str, group: dict[str, Any], form: str | None) -> Rule:
    """Read a config group; `form` is the format of groups that name none."""
    warn_unknown("compressed-tensors", group, _KNOWN_OF_GROUP, f"config_groups.{name}.")
    for field in ("weights", "input_activations"):
        where = f"config_groups.{name}.{field}."
        values = mapping(name, group, field)
        warn_unknown("compressed-tensors", values, _KNOWN_OF_ARGUMENTS, where)
        for switch in ("symmetric", "dynamic"):
            flag(f"{name}: {field}", values, switch, False)
    form = text(name, group, "format") or form
    named = targets(name, group, "targets")
    if found := _problems(group, form):
        lines = "\n".join(f"{name}: {problem}" for problem in found)
        raise InputError("E-QUANT-SCHEME", lines)
    assert form is not None
    return Rule(targets=named, scheme=_scheme(group, form))


def _problems(group: dict[str, Any], form: str | None) -> list[str]:
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    problems = []
    if form not in FORMATS:
        problems.append(f"format {form!r} is not read, only {' and '.join(FORMATS)}")
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    allowed = (8,) if form == "int-quantized" else (4, 8)
    if weights.get("type") != "int" or not isinstance(bits, int) or bits not in allowed:
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
        if strategy != "channel" or not _symmetric(weights):
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
    if not _symmetric(inputs):
        problems.append("asymmetric activations are not supported")
    wanted = "token" if inputs.get("dynamic") else "tensor"
    if inputs.get("strategy") != wanted:
        problems.append(f"activation strategy {inputs.get('strategy')!r}, expected {wanted!r}")
    return problems


def _symmetric(arguments: dict[str, Any]) -> bool:
    return flag("compressed-tensors", arguments, "symmetric", True)


def _scheme(group: dict[str, Any], form: str) -> WeightScheme:
    weights, activation = group["weights"], "float"
    if form == "int-quantized":
        dynamic = group["input_activations"].get("dynamic")
        activation = "int8-dynamic" if dynamic else "int8-static"
    return WeightScheme(
        format=form,
        bits=weights["num_bits"],
        group_size=weights["group_size"] if weights["strategy"] == "group" else CHANNEL,
        symmetric=_symmetric(weights),
        act_order=weights.get("actorder") == "group",
        activation=activation,
    )
