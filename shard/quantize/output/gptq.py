"""GPTQ: v1, whose stored zero points lack 1, and v2.

https://github.com/AutoGPTQ/AutoGPTQ, https://github.com/ModelCloud/GPTQModel
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from ...formats.gptq import ZERO_OFFSETS
from ...formats.scheme import WeightScheme
from ...plan.modules import LinearModule
from .base import Schemes, dense, exactly, members, named, unfilled_words, with_fused


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """`label` is the checkpoint_format."""

    label: Literal["gptq", "gptq_v2"]
    widths: tuple[int, ...] = (4, 8)

    def scheme(self, bits: int, group_size: int, symmetric: bool, activation: str) -> WeightScheme:
        return WeightScheme(
            format="gptq",
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            zero_offset=ZERO_OFFSETS[self.label],
            activation=activation,
        )

    def faults(self, modules: Sequence[LinearModule], schemes: Schemes) -> list[str]:
        quantized = [(name, scheme) for name, scheme in schemes.items() if scheme is not None]
        faults = []
        if wide := [name for name, scheme in quantized if scheme.activation != "float"]:
            faults.append(f"{named(wide)}: int8 activations")
        if any(scheme.zero_offset and not scheme.symmetric for _, scheme in quantized):
            faults.append(
                "zero points: v1 readers disagree about a zero point of 0, and GPTQModel refuses "
                "those that it did not write. Give --format gptq_v2, or --symmetric"
            )
        return faults + unfilled_words(modules, schemes)

    def config(self, schemes: Schemes) -> dict[str, Any]:
        """The usual scheme, and `dynamic` rules for other modules, as GPTQModel writes them."""
        *others, (usual, _) = members(schemes)
        dynamic: dict[str, dict[str, Any]] = {
            f"-:{exactly(name)}": {} for name in with_fused(dense(schemes))
        }
        for scheme, modules in others:
            overrides = {"bits": scheme.bits, "group_size": scheme.group_size}
            dynamic |= {f"+:{exactly(name)}": dict(overrides) for name in with_fused(modules)}
        return {
            "quant_method": "gptq",
            "method": "gptq",
            "checkpoint_format": self.label,
            "format": self.label,
            "bits": usual.bits,
            "group_size": usual.group_size,
            "sym": usual.symmetric,
            # Groups are runs of input features, also where features were quantized in another order
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "meta": {"quantizer": [f"isobit:{version('isobit')}"]},
        } | ({"dynamic": dynamic} if dynamic else {})
