"""AutoRound checkpoints: GPTQ's or AWQ's tensors, under a config of its own.

`packing_format` says which. "auto_round:auto_gptq" (also written auto_round:gptq, auto) stores
zero - 1 as GPTQ v1, element by element; "auto_round" and "auto_round:gptqmodel" store zeros as
GPTQ v2; "auto_round:auto_awq" is AWQ gemm. Without the field it is auto_gptq, as in transformers.
Only Linear modules of the blocks in `block_name_to_quantize` are quantized, and those outside that
`extra_config` names. `extra_config` changes settings of a module: by its full name, else by the
first pattern that occurs in the name. 16 bits leave it dense. https://github.com/intel/auto-round
"""

from __future__ import annotations

import re
from typing import Any

from isobit.errors import NotSupportedError

from ..patterns import check_pattern, found_in, shown
from . import awq, gptq
from .scheme import HEAD, LINEAR, QuantizationSpec, Rule, Targets, WeightScheme
from .settings import (
    MOST_BITS,
    MOST_NAMES,
    MOST_PATTERNS,
    Problems,
    check_count,
    flag,
    is_whole,
    mapping,
    strings,
    text,
    unlike,
    warn_unknown,
)

_GPTQ_OFFSETS = {
    "auto": 1, "auto_gptq": 1, "auto_round:auto_gptq": 1, "auto_round:gptq": 1, "auto_round": 0,
    "auto_round:gptqmodel": 0,
}  # fmt: skip
_AWQ = ("auto_awq", "auto_round:auto_awq", "auto_round:awq")
_OVERRIDES = ("bits", "group_size", "sym")
_SAYS_NOTHING = {
    "act_bits": 16, "act_data_type": None, "act_dynamic": None, "act_group_size": None,
    "act_sym": None, "data_type": "int", "super_bits": None, "super_group_size": None,
}  # fmt: skip
_KNOWN = {
    "amp", "autoround_version", "backend", "batch_size", "bits", "block_name_to_quantize",
    "data_type", "dataset", "enable_minmax_tuning", "enable_norm_bias_tuning",
    "enable_quanted_input", "extra_config", "gradient_accumulate_steps", "group_size", "iters",
    "low_gpu_mem_usage", "lr", "lr_scheduler", "minmax_lr", "model_free", "modules_to_not_convert",
    "nblocks", "not_use_best_mse", "nsamples", "packing_format", "provider", "quant_block_list",
    "quant_method", "sampler", "scale_dtype", "seqlen", "supported_types", "sym",
    "to_quant_block_names", "train_bs", *_SAYS_NOTHING,
}  # fmt: skip
_BLOCKS = ("model.layers",)
_ENDS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
_PLAIN = re.compile(r"[\w.]+", re.ASCII)
HEAD_NAME = "lm_head"
_HIGHEST_QUANTIZED = 8


def quantization(settings: dict[str, Any]) -> QuantizationSpec:
    """Read an AutoRound config.

    Raises DamagedError and NotSupportedError E-QUANT-SCHEME and E-QUANT-PATTERN; NotSupportedError
    E-QUANT-METHOD for a packing_format that is not read.
    """
    warn_unknown("auto-round", settings, _KNOWN)
    packing = text("auto-round", settings, "packing_format") or "auto_round:auto_gptq"
    if packing not in (*_GPTQ_OFFSETS, *_AWQ):
        raise NotSupportedError(
            "E-QUANT-METHOD",
            f"auto-round: packing_format {shown(packing)} is not supported. Read: "
            f"{', '.join((*_GPTQ_OFFSETS, *_AWQ))}",
        )
    problems = Problems()
    problems.get(_refuse_other_codes, "auto-round", settings)
    whole = problems.get(_scheme, "auto-round", settings, packing)
    blocks = problems.get(_blocks, settings)
    kept = problems.get(_kept, settings)
    if whole is None or blocks is None or kept is None:
        problems.raise_all()
    assert blocks is not None
    assert kept is not None
    extra = problems.get(_extra_rules, settings, packing, blocks)
    problems.raise_all()
    kept_here = Rule(targets=Targets(anywhere=kept, within=blocks), scheme=None)
    inside = Rule(targets=Targets(classes=LINEAR.classes, within=blocks), scheme=whole)
    return QuantizationSpec(
        method="auto-round",
        rules=(kept_here, *(extra or ()), inside),
        evidence=f"config says packing_format {packing!r}",
    )


def _scheme(where: str, settings: dict[str, Any], packing: str) -> WeightScheme | None:
    """The scheme that settings describe; None where so many bits leave a module dense."""
    width = settings.get("bits")
    if width is not None and is_whole(width) and _HIGHEST_QUANTIZED < width <= MOST_BITS:
        return None
    if packing in _AWQ:
        symmetric = flag(where, settings, "sym", True)
        return awq.scheme_of(where, settings, symmetric=symmetric)
    return gptq.scheme_of(where, settings, _GPTQ_OFFSETS[packing])


def _refuse_other_codes(where: str, settings: dict[str, Any]) -> None:
    """Refuse codes that are no integers, and quantized activations."""
    kind = text(where, settings, "data_type") or "int"
    if not kind.startswith("int"):
        raise NotSupportedError("E-QUANT-METHOD", f"{where}: {shown(kind)} is not supported")
    width = settings.get("act_bits")
    if width is None:
        return
    if not is_whole(width) or not 0 < width <= 32:
        raise unlike(where, "act_bits", width, "an integer from 1 to 32")
    if width <= _HIGHEST_QUANTIZED:
        raise NotSupportedError(
            "E-QUANT-SCHEME", f"{where}: activations of {width} bits are not supported"
        )


def _blocks(settings: dict[str, Any]) -> tuple[str, ...]:
    """What the names of modules of a quantized block begin with."""
    for field in ("quant_block_list", "block_name_to_quantize", "to_quant_block_names"):
        value = settings.get(field)
        if value is None:
            continue
        listed = value.split(",") if isinstance(value, str) else value
        flat = [
            name
            for part in (listed if isinstance(listed, list) else [listed])
            for name in (part if isinstance(part, list) else [part])
        ]
        if not flat or not all(isinstance(name, str) and name for name in flat):
            raise unlike("auto-round", field, value, "names of blocks")
        return tuple(flat)
    return _BLOCKS


def _kept(settings: dict[str, Any]) -> tuple[str, ...]:
    where, problems = "auto-round: modules_to_not_convert", Problems()
    names = strings("auto-round", settings, "modules_to_not_convert")
    check_count(where, "patterns", len(names), MOST_PATTERNS)
    for name in names:
        problems.get(check_pattern, where, name)
    problems.raise_all()
    return names


def _extra_rules(settings: dict[str, Any], packing: str, blocks: tuple[str, ...]) -> list[Rule]:
    """The rules of `extra_config`: full names, then patterns, each with its changed settings."""
    extra, problems = mapping("auto-round", settings, "extra_config"), Problems()
    check_count("auto-round: extra_config", "entries", len(extra), MOST_NAMES)
    named, patterns = [], []
    for key in extra:
        where = f"auto-round: extra_config.{key}"
        changes = problems.get(mapping, "auto-round: extra_config", extra, key)
        if changes is None:
            continue
        own = {field: changes[field] for field in _OVERRIDES if field in changes}
        count = len(problems)
        scheme = problems.get(_scheme, where, {**settings, **own}, packing)
        if scheme is not None:
            problems.get(_refuse_other_codes, where, changes)
        if len(problems) > count:
            continue
        named.append(Rule(targets=Targets(names=frozenset({key})), scheme=scheme))
        if _PLAIN.fullmatch(key) or not changes:
            continue
        if problems.get(check_pattern, where, key) is not None:
            patterns += _pattern_rules(key, scheme, blocks)
    check_count("auto-round: extra_config", "patterns", len(patterns), 2 * MOST_PATTERNS)
    problems.raise_all()
    return [*named, *patterns]


def _pattern_rules(
    pattern: str, scheme: WeightScheme | None, blocks: tuple[str, ...]
) -> list[Rule]:
    """A pattern is for modules of the blocks; the head has it if none of those do."""
    rules = [Rule(targets=Targets(anywhere=(pattern,), within=blocks), scheme=scheme)]
    inside = any(found_in(pattern, f"{block}.0.{end}") for block in blocks for end in _ENDS)
    if found_in(pattern, HEAD_NAME) and not inside:
        rules.append(Rule(targets=HEAD, scheme=scheme))
    return rules
