"""What an output format offers, and how its errors and configs name modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from ...formats.scheme import WeightScheme
from ...plan.modules import LinearModule

Schemes = Mapping[str, WeightScheme | None]
"""The scheme of each product by module name; None leaves it dense."""

_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


class OutputFormat(Protocol):
    """One format that quantized folders are written in."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of the weights that it stores."""
        ...

    def scheme(self, bits: int, group_size: int, symmetric: bool, activation: str) -> WeightScheme:
        """How a weight is stored; `activation` is WeightScheme's."""
        ...

    def faults(self, modules: Sequence[LinearModule], schemes: Schemes) -> list[str]:
        """What the format cannot store, one line for each reason, naming every module."""
        ...

    def config(self, schemes: Schemes) -> dict[str, Any]:
        """The quantization_config; at least one module is quantized."""
        ...


def members(schemes: Schemes) -> list[tuple[WeightScheme, list[str]]]:
    """Quantized modules by scheme, the scheme of most modules last."""
    found: dict[WeightScheme, list[str]] = {}
    for module, scheme in schemes.items():
        if scheme is not None:
            found.setdefault(scheme, []).append(module)
    return sorted(found.items(), key=lambda item: len(item[1]))


def dense(schemes: Schemes) -> list[str]:
    """Modules that stay dense."""
    return [module for module, scheme in schemes.items() if scheme is None]


def with_fused(modules: Sequence[str]) -> list[str]:
    """Module names, and those under which vLLM asks for q, k and v, or gate and up, as one."""
    names = list(modules)
    for fused, (first, *rest) in _FUSED.items():
        stems = [name.removesuffix(first) for name in modules if name.endswith(first)]
        names += [s + fused for s in stems if all(s + part in modules for part in rest)]
    return names


def exactly(module: str) -> str:
    """A pattern of `dynamic` that matches one module."""
    return f"^{re.escape(module)}$"


def named(modules: Iterable[str]) -> str:
    """Name modules of layers shortly, all of them: "layers.0-3,7.mlp.up_proj, ..."."""
    layers: dict[str, list[int]] = {}
    for module in modules:
        _, _, layer, short = module.split(".", 3)
        layers.setdefault(short, []).append(int(layer))
    return ", ".join(f"layers.{_runs(numbers)}.{short}" for short, numbers in layers.items())


def unfilled_words(modules: Sequence[LinearModule], schemes: Schemes) -> list[str]:
    """Faults of weights [N, K] whose codes along N or along K do not fill whole 32-bit words."""
    wrong: dict[tuple[str, int, int], list[str]] = {}
    for module in modules:
        if (scheme := schemes[module.name]) is None:
            continue
        for side, size in (("output", module.n), ("input", module.k)):
            if size * scheme.bits % 32:
                wrong.setdefault((side, size, scheme.bits), []).append(module.name)
    return [
        f"{named(names)}: {size} {side} features of {bits} bits do not fill whole 32-bit words"
        for (side, size, bits), names in wrong.items()
    ]


def _runs(numbers: list[int]) -> str:
    parts = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        values = [value for _, value in run]
        parts.append(str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}")
    return ",".join(parts)
