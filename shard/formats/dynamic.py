"""GPTQModel's `dynamic`: settings that patterns of module names override, for GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..patterns import check_pattern
from .scheme import Rule, Targets, WeightScheme
from .settings import MOST_PATTERNS, Problems, check_count, mapping, warn_unknown

_OVERRIDES = ("bits", "group_size", "sym", "desc_act")
# Overrides that steer quantization, and say nothing about what was stored.
_OVERRIDES_OF_QUANTIZING = (
    "act_group_aware", "damp_auto_increment", "damp_percent", "hessian", "mse", "static_groups",
)  # fmt: skip


def dynamic_rules(
    method: str, settings: dict[str, Any], scheme: Callable[[dict[str, Any]], WeightScheme]
) -> list[Rule]:
    """The rules of `dynamic`: a pattern with "-:" leaves modules dense, others override.

    `scheme` reads changed settings. Raises what it and patterns.check_pattern raise.
    """
    where, problems = f"{method}: dynamic", Problems()
    dynamic = mapping(method, settings, "dynamic")
    check_count(where, "patterns", len(dynamic), MOST_PATTERNS)
    found = [problems.get(_rule, method, where, settings, key, scheme) for key in dynamic]
    problems.raise_all()
    return [rule for rule in found if rule is not None]


def _rule(
    method: str,
    where: str,
    settings: dict[str, Any],
    key: str,
    scheme: Callable[[dict[str, Any]], WeightScheme],
) -> Rule:
    dynamic = settings["dynamic"]
    pattern = check_pattern(where, key.removeprefix("-:").removeprefix("+:"))
    targets = Targets(patterns=(pattern,))
    overrides = mapping(where, dynamic, key)
    if key.startswith("-:"):
        return Rule(targets=targets, scheme=None)
    known = (*_OVERRIDES, *_OVERRIDES_OF_QUANTIZING)
    warn_unknown(method, overrides, known, f"dynamic.{key}.")
    changes = {field: overrides[field] for field in _OVERRIDES if field in overrides}
    return Rule(targets=targets, scheme=scheme({**settings, **changes}))
