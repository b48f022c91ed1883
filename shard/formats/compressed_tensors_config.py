"""The quantization_config of compressed-tensors: config groups, each with targets and a scheme.

Targets and `ignore` decide as in compressed_tensors.quantization.apply_quantization_config: what
`ignore` matches is dense; else a full name beats a pattern, a pattern beats a class, and among
patterns the first in alphabetical order wins, whatever group it stands in. Of two groups with the
same target the later one has it. A name without "re:" is a full name or a class, never the end of a
name. https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isobit.errors import InputError, NotSupportedError

from ..patterns import check_pattern, shown
from .compressed_tensors_arguments import Arguments, arguments, named_format, preset
from .scheme import (
    CHANNEL,
    EMBEDDING,
    QuantizationSpec,
    Rule,
    Targets,
    WeightScheme,
)
from .settings import (
    MOST_GROUPS,
    MOST_PATTERNS,
    Problems,
    check_count,
    mapping,
    names_and_patterns,
    strings,
    text,
    unlike,
    warn_unknown,
)

FORMATS = ("pack-quantized", "int-quantized")
_KNOWN = {
    "config_groups", "dequantize", "format", "global_compression_ratio", "ignore",
    "kv_cache_scheme", "moe_sparsity_config", "quant_method", "quantization_status",
    "run_compressed", "sparsity_config", "transform_config", "version",
}  # fmt: skip
_KNOWN_OF_GROUP = {"format", "input_activations", "output_activations", "targets", "weights"}
_REFUSED = {
    "kv_cache_scheme": "a quantized KV cache is not supported",
    "moe_sparsity_config": "sparse experts are not supported",
    "transform_config": "online transforms (rotations) are not supported",
}


@dataclass(frozen=True, kw_only=True)
class _Group:
    targets: tuple[str, ...]
    scheme: WeightScheme | None


def quantization(settings: dict[str, Any]) -> QuantizationSpec:
    """Read the config groups; what is wrong with any of them comes in one error.

    Raises DamagedError and NotSupportedError E-QUANT-SCHEME and E-QUANT-PATTERN; NotSupportedError
    E-QUANT-METHOD, alone, for a format that is known by name and not read.
    """
    warn_unknown("compressed-tensors", settings, _KNOWN)
    problems = Problems()
    for field, why in _REFUSED.items():
        if settings.get(field):
            problems.add(NotSupportedError("E-QUANT-SCHEME", f"{field}: {why}"))
    problems.get(_refuse_sparsity, settings)
    form = problems.get(text, "compressed-tensors", settings, "format")
    ignored = problems.get(_ignored, settings)
    groups = problems.get(_groups, settings, form)
    problems.raise_all()
    assert ignored is not None
    assert groups is not None
    spec = QuantizationSpec(
        method="compressed-tensors",
        rules=(Rule(targets=ignored, scheme=None), *_rules(groups)),
        evidence=f"config says format {', '.join(_formats(groups)) or 'dense'}",
    )
    if spec.scheme(EMBEDDING) is not None:
        raise NotSupportedError(
            "E-QUANT-SCHEME", f"{EMBEDDING}: a quantized embedding is not supported"
        )
    return spec


def _formats(groups: list[_Group]) -> list[str]:
    return sorted({group.scheme.format for group in groups if group.scheme is not None})


def _refuse_sparsity(settings: dict[str, Any]) -> None:
    sparse = mapping("compressed-tensors", settings, "sparsity_config")
    if sparse and sparse.get("format") != "dense":
        raise NotSupportedError(
            "E-QUANT-SCHEME",
            f"sparsity_config: format {shown(sparse.get('format'))} is not read, only 'dense': "
            "sparse weights are not supported",
        )


def _ignored(settings: dict[str, Any]) -> Targets:
    names = strings("compressed-tensors", settings, "ignore")
    return names_and_patterns("compressed-tensors: ignore", names)


def _groups(settings: dict[str, Any], form: str | None) -> list[_Group]:
    """Read every group; `form` is the format of groups that name none."""
    found = mapping("compressed-tensors", settings, "config_groups")
    if not found:
        raise unlike("compressed-tensors", "config_groups", found, "at least one group")
    check_count("compressed-tensors", "config_groups", len(found), MOST_GROUPS)
    problems = Problems()
    groups = {
        name: group for name in found if (group := problems.get(_settings, found, name)) is not None
    }
    _refuse_named_formats(groups, form)
    read = [problems.get(_group, name, group, form) for name, group in groups.items()]
    patterns = sum(t.startswith("re:") for group in read if group for t in group.targets)
    problems.get(check_count, "config_groups", "patterns", patterns, MOST_PATTERNS)
    problems.raise_all()
    return [group for group in read if group is not None]


def _settings(groups: dict[str, Any], name: str) -> dict[str, Any]:
    value = groups[name]
    return (
        preset(name, value) if isinstance(value, list) else mapping("config_groups", groups, name)
    )


def _refuse_named_formats(groups: dict[str, dict[str, Any]], form: str | None) -> None:
    """Raise for formats that have a name of their own: nothing else about them is worth saying."""
    named = [named_format(group, form) for group in groups.values()]
    if found := list(dict.fromkeys(name for name in named if name)):
        raise NotSupportedError(
            "E-QUANT-METHOD",
            f"compressed-tensors {' and '.join(found)} is not supported. Read: "
            f"{' and '.join(FORMATS)} with integers of 4 and 8 bits",
        )


def _group(name: str, group: dict[str, Any], form: str | None) -> _Group:
    warn_unknown("compressed-tensors", group, _KNOWN_OF_GROUP, f"config_groups.{name}.")
    problems = Problems()
    form = problems.get(text, name, group, "format") or form
    named = problems.get(_targets, name, group)
    weights = problems.get(arguments, name, group, "weights")
    inputs = problems.get(arguments, name, group, "input_activations")
    if group.get("output_activations"):
        problems.add(_unsupported(name, "quantized outputs are not supported"))
    if weights is not None:
        _check(name, form, weights, inputs, problems)
    elif inputs is not None:
        problems.add(_unsupported(name, "quantized activations without quantized weights"))
    problems.raise_all()
    assert named is not None
    if weights is None:
        return _Group(targets=named, scheme=None)
    assert form is not None
    activation = "float"
    if inputs is not None:
        activation = "int8-dynamic" if inputs.dynamic else "int8-static"
    scheme = WeightScheme(
        format=form,
        bits=weights.bits,
        group_size=CHANNEL if weights.group_size is None else weights.group_size,
        symmetric=weights.symmetric,
        act_order=weights.act_order,
        activation=activation,
    )
    return _Group(targets=named, scheme=scheme)


def _targets(name: str, group: dict[str, Any]) -> tuple[str, ...]:
    found = strings(name, group, "targets")
    if not found:
        raise unlike(name, "targets", list(found), "at least one name, pattern or class")
    problems = Problems()
    for target in found:
        if target.startswith("re:"):
            problems.get(check_pattern, f"{name}: targets", target.removeprefix("re:"))
    problems.raise_all()
    return found


def _check(
    name: str, form: str | None, weights: Arguments, inputs: Arguments | None, problems: Problems
) -> None:
    """Note what of a group is not supported."""
    why = []
    if form not in FORMATS:
        why.append(f"format {shown(form)} is not read, only {' and '.join(FORMATS)}")
    allowed = (8,) if form == "int-quantized" else (4, 8)
    if weights.bits not in allowed:
        widths = " or ".join(map(str, allowed))
        why.append(f"{weights.bits} bits of type 'int', expected int and {widths}")
    if weights.strategy not in ("group", "channel"):
        why.append(f"weight strategy {weights.strategy!r}, expected 'group' or 'channel'")
    if form == "int-quantized":
        if weights.strategy != "channel" or not weights.symmetric:
            why.append("int-quantized weights must be symmetric with strategy 'channel'")
        why += _about_inputs(inputs)
    elif inputs is not None:
        why.append("pack-quantized weights with quantized activations are not supported")
    for reason in why:
        problems.add(_unsupported(name, reason))


def _about_inputs(inputs: Arguments | None) -> list[str]:
    if inputs is None:
        return ["int-quantized weights without input_activations are not supported"]
    why = []
    if inputs.bits != 8:
        why.append("input_activations must be 8-bit integers")
    if not inputs.symmetric:
        why.append("asymmetric activations are not supported")
    wanted = "token" if inputs.dynamic else "tensor"
    if inputs.strategy != wanted:
        why.append(f"activation strategy {inputs.strategy!r}, expected {wanted!r}")
    return why


def _unsupported(name: str, why: str) -> InputError:
    return NotSupportedError("E-QUANT-SCHEME", f"{name}: {why}")


def _rules(groups: list[_Group]) -> list[Rule]:
    """The rules in the order in which compressed-tensors lets targets win."""
    scheme_of = {target: group.scheme for group in groups for target in group.targets}
    names = {t: scheme for t, scheme in scheme_of.items() if not t.startswith("re:")}
    by_scheme: dict[WeightScheme | None, list[str]] = {}
    for name, scheme in names.items():
        by_scheme.setdefault(scheme, []).append(name)
    rules = [
        Rule(targets=Targets(names=frozenset(same)), scheme=scheme)
        for scheme, same in by_scheme.items()
    ]
    rules += [
        Rule(targets=Targets(patterns=(target.removeprefix("re:"),)), scheme=scheme_of[target])
        for target in sorted(scheme_of.keys() - names.keys())
    ]
    rules += [
        Rule(targets=Targets(classes=frozenset({name})), scheme=names[name])
        for name in sorted(names)
        if name in ("Embedding", "Linear", "Module")
    ]
    return rules
