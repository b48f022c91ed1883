"""Rotary position embedding tables, from the settings in config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.errors import InputError
from .settings import positive_number


@dataclass(frozen=True, kw_only=True)
class RotarySpec:
    """Rotary settings. `kind` is "default", "linear" or "llama3" (the scaling of Llama 3.1)."""

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context: int = 0


def rotary_from_config(config: dict[str, Any]) -> RotarySpec:
    """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before).

    Raises InputError E-CONFIG-ROPE for kinds that isobit does not compute, and for bad numbers.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise InputError("E-CONFIG-ROPE", f"config.json: rope_scaling {scaling!r} is not an object")

    def number(key: str, default: float | None = None) -> float:
        return positive_number(scaling, key, default, "E-CONFIG-ROPE")

    default_theta = positive_number(config, "rope_theta", 10000.0, "E-CONFIG-ROPE")
    theta = number("rope_theta", default_theta)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RotarySpec(kind=kind, theta=theta)
    if kind == "linear":
        return RotarySpec(kind=kind, theta=theta, factor=number("factor"))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if low >= high:
            raise InputError(
                "E-CONFIG-ROPE",
                f"config.json: low_freq_factor {low} is not below high_freq_factor {high}",
            )
        return RotarySpec(
            kind=kind,
            theta=theta,
            factor=number("factor"),
            low_freq_factor=low,
            high_freq_factor=high,
            original_context=int(number("original_max_position_embeddings")),
        )
    raise InputError(
        "E-CONFIG-ROPE",
        f"config.json: rotary type {kind!r} is not supported. Supported: default, linear, llama3",
    )


def inverse_frequencies(spec: RotarySpec, head_size: int) -> torch.Tensor:
    """Return the rotary frequencies, float64 [D/2].

    Llama 3.1 scaling: low frequencies are divided by `factor`, high ones kept, those between
    blended, as in the reference code that came with the Llama 3.1 weights.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64) / head_size
    frequencies = spec.theta**-exponents
    if spec.kind == "linear":
        return frequencies / spec.factor
    if spec.kind == "llama3":
        wavelength = 2 * math.pi / frequencies
        blend = (spec.original_context / wavelength - spec.low_freq_factor) / (
            spec.high_freq_factor - spec.low_freq_factor
        )
        blend = blend.clamp(0, 1)
        return (1 - blend) * frequencies / spec.factor + blend * frequencies
    return frequencies


def rotary_tables(spec: RotarySpec, head_size: int, positions: int) -> tuple[torch.Tensor, ...]:
    """Return (cos, sin), float32 [positions, D/2], computed in float64 and rounded once."""
    angles = torch.outer(
        torch.arange(positions, dtype=torch.float64), inverse_frequencies(spec, head_size)
    )
    return angles.cos().float(), angles.sin().float()
