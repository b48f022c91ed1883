"""compressed-tensors: pack-quantized weights, int-quantized ones with int8 activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...formats.scheme import CHANNEL, WeightScheme
from ...plan.modules import LinearModule
from .base import Schemes, dense, members


@dataclass(frozen=True, kw_only=True)
class CompressedTensors:
    """Stores all that can be asked for. https://github.com/vllm-project/compressed-tensors"""

    widths: tuple[int, ...] = (4, 8)

    def scheme(self, bits: int, group_size: int, symmetric: bool, activation: str) -> WeightScheme:
        return WeightScheme(
            format="pack-quantized" if activation == "float" else "int-quantized",
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            activation=activation,
        )

    def faults(self, modules: Sequence[LinearModule], schemes: Schemes) -> list[str]:
        return []

    def config(self, schemes: Schemes) -> dict[str, Any]:
        """The target of one scheme for all products is "Linear"; of several, each names its own.

        For a fused product, which no list names, vLLM tries "Linear" before the names of its
        members, and so would give q, k and v the scheme of the rest.
        """
        rising = members(schemes)
        groups = {
            f"group_{number}": _group(scheme, ["Linear"] if len(rising) == 1 else modules)
            for number, (scheme, modules) in enumerate(rising)
        }
        config = {
            "quant_method": "compressed-tensors",
            "format": rising[-1][0].format,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": ["lm_head", *dense(schemes)],
        }
        # transformers with compressed-tensors 0.18 to 0.20 expects the shape of unpacked zero
        # points unless it dequantizes while loading, which it does with the first group for all.
        if len(rising) == 1 and not rising[0][0].symmetric:
            config["dequantize"] = True
        return config


def _group(scheme: WeightScheme, targets: list[str]) -> dict[str, Any]:
    channel = scheme.group_size == CHANNEL
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if channel else "group",
        "group_size": None if channel else scheme.group_size,
        "dynamic": False,
        "actorder": None,
    }
    inputs = None
    if scheme.activation != "float":
        inputs = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token" if scheme.activation == "int8-dynamic" else "tensor",
            "dynamic": scheme.activation == "int8-dynamic",
        }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": scheme.format,
    }
