"""How compressed-tensors describes one quantized tensor: QuantizationArgs, and its presets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from isobit.errors import NotSupportedError

from .scheme import CHANNEL
from .settings import (
    Problems,
    bits,
    flag,
    group_size,
    is_whole,
    mapping,
    text,
    unlike,
    warn_unknown,
)

_KNOWN = {
    "actorder", "block_structure", "dynamic", "group_size", "num_bits", "observer",
    "observer_kwargs", "scale_dtype", "strategy", "symmetric", "type", "zp_dtype",
}  # fmt: skip
_STRATEGIES = ("tensor", "channel", "group", "block", "token", "tensor_group", "attn_head")
_ACT_ORDERS = {"group": True, "dynamic": True, "weight": False, "static": False}
_FLOATS = {
    "nvfp4-pack-quantized": "NVFP4",
    "mxfp4-pack-quantized": "MXFP4",
    "mxfp6-pack-quantized": "MXFP6",
    "mxfp8-quantized": "MXFP8",
    "float-quantized": "FP8",
}
_WEIGHTS = {"W8A16": (8, 128), "W4A16": (4, 128), "W4A16_ASYM": (4, 128), "W8A8": (8, None)}
_WEIGHTS |= {"INT8": _WEIGHTS["W8A8"]}
_OTHER_PRESETS = re.compile(r"W\dA(?:\d+|FP8)|(?:NV|MX)?FP\d\w*")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Integers of some width. `group_size` is None unless the strategy has groups."""

    bits: int
    symmetric: bool
    strategy: str
    group_size: int | None
    dynamic: bool
    act_order: bool


def arguments(name: str, group: dict[str, Any], field: str) -> Arguments | None:
    """Read the weights or activations of a config group, with the defaults of compressed-tensors.

    None where the group has none. Raises DamagedError and NotSupportedError E-QUANT-SCHEME.
    """
    if group.get(field) is None:
        return None
    where, problems = f"{name}: {field}", Problems()
    values = mapping(name, group, field)
    warn_unknown("compressed-tensors", values, _KNOWN, f"config_groups.{name}.{field}.")
    problems.get(_check_type, where, values)
    width = problems.get(bits, where, {"num_bits": 8, **values}, range(2, 9), "num_bits")
    symmetric = problems.get(flag, where, values, "symmetric", True)
    dynamic = problems.get(flag, where, values, "dynamic", False)
    size = problems.get(_group_size, where, values)
    strategy = problems.get(_strategy, where, values)
    act_order = problems.get(_act_order, where, values)
    problems.raise_all()
    assert width is not None
    assert strategy is not None
    if strategy == "group" and (size is None or size == CHANNEL):
        raise unlike(where, "group_size", values.get("group_size"), "a positive integer")
    return Arguments(
        bits=width,
        symmetric=bool(symmetric),
        strategy=strategy,
        group_size=size if strategy == "group" else None,
        dynamic=bool(dynamic),
        act_order=bool(act_order),
    )


def named_format(group: dict[str, Any], form: str | None) -> str | None:
    """The name of a format of floating-point codes, None for a group of integers.

    `form` is the format of groups that name none.
    """
    own = group.get("format") or form
    if isinstance(own, str) and own in _FLOATS:
        return _FLOATS[own]
    for field in ("weights", "input_activations"):
        values = group.get(field)
        if not isinstance(values, dict):
            continue
        if values.get("dynamic") == "local" or values.get("strategy") == "tensor_group":
            return "NVFP4"
        kind = values.get("type")
        if isinstance(kind, str) and kind.lower() == "float":
            width = values.get("num_bits")
            micro = values.get("strategy") == "group" and values.get("group_size") == 32
            return f"{'MX' if micro else ''}FP{width if is_whole(width) else 8}"
    return None


def preset(name: str, named: list[Any]) -> dict[str, Any]:
    """A group that is written as the name of a preset and a list of targets, as its settings.

    Raises NotSupportedError E-QUANT-METHOD for a preset that is not read, DamagedError
    E-QUANT-SCHEME for what is none.
    """
    known = name.upper()
    if known == "UNQUANTIZED":
        return {"targets": named}
    if known not in _WEIGHTS:
        if _OTHER_PRESETS.fullmatch(known):
            raise NotSupportedError(
                "E-QUANT-METHOD", f"compressed-tensors {known} is not supported. Read: {_READ}"
            )
        expected = f"a map (JSON object), or the name of a preset and its targets ({_READ})"
        raise unlike("config_groups", name, named, expected)
    width, size = _WEIGHTS[known]
    weights = {"num_bits": width, "symmetric": not known.endswith("_ASYM"), "group_size": size}
    if size is not None:
        return {"targets": named, "weights": weights | {"strategy": "group"}}
    inputs = {"num_bits": 8, "strategy": "token", "dynamic": True}
    weights = weights | {"strategy": "channel"}
    return {"targets": named, "weights": weights, "input_activations": inputs}


_READ = ", ".join(_WEIGHTS)


def _check_type(where: str, values: dict[str, Any]) -> None:
    kind = text(where, values, "type")
    if kind is not None and kind.lower() != "int":
        raise unlike(where, "type", kind, "'int' or 'float'")


def _group_size(where: str, values: dict[str, Any]) -> int | None:
    return None if values.get("group_size") is None else group_size(where, values)


def _strategy(where: str, values: dict[str, Any]) -> str:
    """The strategy, or the one that follows from group_size where none is named."""
    strategy = text(where, values, "strategy")
    if strategy is None:
        size = values.get("group_size")
        return "tensor" if size is None else "channel" if size == CHANNEL else "group"
    if strategy.lower() not in _STRATEGIES:
        raise unlike(where, "strategy", strategy, f"one of {', '.join(_STRATEGIES)}")
    return strategy.lower()


def _act_order(where: str, values: dict[str, Any]) -> bool:
    """Whether features have a group index. actorder "weight" sorted them for quantizing alone."""
    order = values.get("actorder")
    if order is None or order is False:
        return False
    if not isinstance(order, str) or order.lower() not in _ACT_ORDERS:
        raise unlike(where, "actorder", order, f"one of {', '.join(_ACT_ORDERS)}")
    return _ACT_ORDERS[order.lower()]
