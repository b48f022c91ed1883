"""GPTQModel's `dynamic`: settings that patterns of module names override, for GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..quantization import Rule, WeightScheme
from .settings import mapping, pattern, warn_unknown

_OVERRIDES = ("bits", "group_size", "sym", "desc_act")
# Overrides that steer quantization, and say nothing about what was stored.
_OVERRIDES_OF_QUANTIZING = (
    "act_group_aware", "damp_auto_increment", "damp_percent", "hessian", "mse", "static_groups",
)  # fmt: skip


def dynamic_rules(
    method: str, settings: dict[str, Any], scheme: Callable[[dict[str, Any]], WeightScheme]
) -> list[Rule]:
    """The rules of `dynamic`: a pattern with "-:" leaves modules dense, others override.

    `scheme` reads changed settings. Raises InputError E-QUANT-SCHEME.
    """
    where = f"{method}: dynamic"
    rules, dynamic = [], mapping(method, settings, "dynamic")
    for key in dynamic:
        target = "re:" + pattern(where, key.removeprefix("-:").removeprefix("+:"))
        overrides = mapping(where, dynamic, key)
        if key.startswith("-:"):
            rules.append(Rule(targets=(target,), scheme=None))
            continue
        known = (*_OVERRIDES, *_OVERRIDES_OF_QUANTIZING)
        warn_unknown(method, overrides, known, f"dynamic.{key}.")
        changes = {field: overrides[field] for field in _OVERRIDES if field in overrides}
        rules.append(Rule(targets=(target,), scheme=scheme({**settings, **changes})))
    return rules
