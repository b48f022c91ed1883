"""Which scheme each weight of a checkpoint is quantized with, read from its config."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from ..kernels.errors import InputError

log = logging.getLogger("isobit.shard")

CHANNEL = -1


@dataclass(frozen=True, kw_only=True)
class WeightScheme:
    """How one weight is quantized. `group_size` CHANNEL (-1) means one group per output row."""

    bits: int
    group_size: int
    symmetric: bool

    def groups(self, k: int) -> int:
        return 1 if self.group_size == CHANNEL else -(-k // self.group_size)

    def group_width(self, k: int) -> int:
        """Input features that share a scale in a weight with K = k."""
        return k if self.group_size == CHANNEL else self.group_size


@dataclass(frozen=True, kw_only=True)
class QuantizationSpec:
    """The quantization of a checkpoint: the first rule whose target matches a module decides.

    Targets and `ignore` are module names, "re:" patterns, or the class name "Linear".
    """

    method: str
    format: str
    rules: tuple[tuple[tuple[str, ...], WeightScheme], ...]
    ignore: tuple[str, ...]

    def scheme(self, module: str) -> WeightScheme | None:
        """Return the scheme of a module such as model.layers.0.mlp.up_proj; None means dense."""
        if any(_matches(pattern, module) for pattern in self.ignore):
            return None
        for targets, scheme in self.rules:
            if any(_matches(target, module) for target in targets):
                return scheme
        return None


def quantization_from_config(
    config: dict[str, Any], quantize_config: dict[str, Any] | None
) -> QuantizationSpec | None:
    """Read `quantization_config` of config.json; None for a dense checkpoint.

    Raises InputError E-QUANT-METHOD for a method that isobit does not read, E-QUANT-SCHEME for
    settings within a known method that it does not.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings is None and quantize_config is None:
        return None
    settings = {**(quantize_config or {}), **(settings or {})}
    method = settings.get("quant_method") or settings.get("method") or "gptq"
    if method == "compressed-tensors":
        return _compressed_tensors(settings)
    if method in ("gptq", "awq"):
        return _uniform(method, settings)
    raise InputError(
        "E-QUANT-METHOD",
        f"quantization method {method!r} is not known. Known: compressed-tensors, gptq, awq",
    )


def _uniform(method: str, settings: dict[str, Any]) -> QuantizationSpec:
    """GPTQ and AWQ: one scheme for every product except the ignored ones."""
    bits, size = settings.get("bits"), settings.get("group_size")
    if bits not in (4, 8):
        raise InputError("E-QUANT-SCHEME", f"{method}: bits is {bits!r}, expected 4 or 8")
    if isinstance(size, bool) or not isinstance(size, int) or (size <= 0 and size != CHANNEL):
        raise InputError(
            "E-QUANT-SCHEME", f"{method}: group_size is {size!r}, expected a positive integer or -1"
        )
    symmetric = settings.get("sym", True) if method == "gptq" else not settings.get("zero_point")
    scheme = WeightScheme(bits=bits, group_size=size, symmetric=bool(symmetric))
    ignore = tuple(settings.get("modules_to_not_convert") or ())
    return QuantizationSpec(
        method=method, format=method, rules=((("Linear",), scheme),), ignore=(*ignore, "lm_head")
    )


_KNOWN_FIELDS = {
    "config_groups",
    "format",
    "global_compression_ratio",
    "ignore",
    "kv_cache_scheme",
    "quant_method",
    "quantization_status",
    "sparsity_config",
    "transform_config",
    "version",
}


def _compressed_tensors(settings: dict[str, Any]) -> QuantizationSpec:
    problems = []
    for field in sorted(set(settings) - _KNOWN_FIELDS):
        log.warning("quantization_config: unknown field %r is not used", field)
    for field in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if settings.get(field):
            problems.append(f"{field} is set ({settings[field]!r}) and not supported")
    rules = []
    for name, group in (settings.get("config_groups") or {}).items():
        weights = group.get("weights") or {}
        form = group.get("format") or settings.get("format")
        if form != "pack-quantized":
            problems.append(f"{name}: format {form!r}, expected 'pack-quantized'")
        if group.get("input_activations"):
            problems.append(f"{name}: quantized activations are not supported")
        if group.get("output_activations"):
            problems.append(f"{name}: quantized outputs are not supported")
        bits, strategy = weights.get("num_bits"), weights.get("strategy")
        if bits not in (4, 8) or weights.get("type") != "int":
            problems.append(
                f"{name}: {bits} bits of type {weights.get('type')!r}, expected int 4 or 8"
            )
        if strategy not in ("group", "channel"):
            problems.append(f"{name}: strategy {strategy!r}, expected 'group' or 'channel'")
        if not weights.get("symmetric", True):
            problems.append(f"{name}: asymmetric weights are not supported")
        if weights.get("actorder") not in (None, False, "static", "weight"):
            problems.append(f"{name}: actorder {weights['actorder']!r} is not supported")
        size = weights.get("group_size") if strategy == "group" else CHANNEL
        if strategy == "group" and (not isinstance(size, int) or size <= 0):
            problems.append(f"{name}: group_size is {size!r}, expected a positive integer")
        if problems:
            continue
        scheme = WeightScheme(bits=bits, group_size=size, symmetric=True)  # pyright: ignore[reportArgumentType]
        rules.append((tuple(group.get("targets", ())), scheme))
    if not rules and not problems:
        problems.append("config_groups is empty: it must say which weights are quantized")
    if problems:
        raise InputError("E-QUANT-SCHEME", "quantization_config:\n  " + "\n  ".join(problems))
    return QuantizationSpec(
        method="compressed-tensors",
        format="pack-quantized",
        rules=tuple(rules),
        ignore=tuple(settings.get("ignore") or ()),
    )


def _matches(pattern: str, module: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if pattern == "Linear":
        return not module.endswith("embed_tokens")
    return module == pattern or module.endswith("." + pattern)


def assumed_quantization(name: str, group_size: int) -> QuantizationSpec:
    """The quantization that a user asks to assume: "int4" or "int8" with a group size or -1.

    Raises InputError E-QUANT-SCHEME.
    """
    if name not in ("int4", "int8") or (group_size <= 0 and group_size != CHANNEL):
        raise InputError(
            "E-QUANT-SCHEME",
            f"--quantization {name} --group-size {group_size}: expected int4 or int8, and a "
            "positive group size or -1",
        )
    scheme = WeightScheme(bits=int(name[3:]), group_size=group_size, symmetric=True)
    return QuantizationSpec(
        method=name, format="assumed", rules=((("Linear",), scheme),), ignore=("lm_head",)
    )
