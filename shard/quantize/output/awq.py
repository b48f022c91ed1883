"""AWQ as AutoAWQ stores it, version "gemm". https://github.com/casper-hansen/AutoAWQ"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...formats.scheme import WeightScheme
from ...plan.modules import LinearModule
from .base import Schemes, dense, exactly, members, named, unfilled_words, with_fused


@dataclass(frozen=True, kw_only=True)
class Awq:
    """Zero points are always stored: symmetric weights have 8, as readers without a symmetric
    variant expect them."""

    widths: tuple[int, ...] = (4,)

    def scheme(self, bits: int, group_size: int, symmetric: bool, activation: str) -> WeightScheme:
        return WeightScheme(
            format="awq",
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            activation=activation,
        )

    def faults(self, modules: Sequence[LinearModule], schemes: Schemes) -> list[str]:
        faults = []
        quantized = [(name, scheme) for name, scheme in schemes.items() if scheme is not None]
        if wide := [name for name, scheme in quantized if scheme.activation != "float"]:
            faults.append(f"{named(wide)}: int8 activations")
        elif eight := [name for name, scheme in quantized if scheme.bits != 4]:
            faults.append(f"{named(eight)}: 8 bits, only 4 are stored")
        return faults + ([] if faults else unfilled_words(modules, schemes))

    def config(self, schemes: Schemes) -> dict[str, Any]:
        """AutoAWQ and transformers read which modules are dense in `modules_to_not_convert`,
        GPTQModel in `dynamic`."""
        [(scheme, _)], kept = members(schemes), dense(schemes)
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "zero_point": True,
            "modules_to_not_convert": ["lm_head", *with_fused(kept)],
        } | ({"dynamic": {f"-:{exactly(name)}": {} for name in kept}} if kept else {})
