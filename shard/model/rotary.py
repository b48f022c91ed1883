"""Rotary position embedding tables, as transformers computes them, in float64.

transformers computes frequencies and angles in float32. At position 100,000 such an angle is off by
some 0.01; here angles are float64, and a table is rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

Kind = Literal["default", "linear", "llama3", "yarn", "longrope", "dynamic"]
Variant = Literal["", "short", "long"]
KINDS: tuple[Kind, ...] = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")

_ROWS = 1 << 16
"""Positions whose float64 angles stand in memory at one time."""


@dataclass(frozen=True, kw_only=True)
class RotarySpec:
    """Rotary settings.

    `original_context` is the length that a scaled model was trained with, in tokens, 0 where the
    kind has none. `attention_factor` multiplies cosines and sines. `variant` is "" where factors
    depend on no length; for longrope it says whose factors are used, at every position alike.
    """

    kind: Kind
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    variant: Variant = ""

    def at_length(self, length: int) -> RotarySpec:
        """The settings of an engine whose longest sequence has `length` tokens."""
        if self.kind != "longrope":
            return self
        return replace(self, variant="long" if length > self.original_context else "short")

    def default_length(self, positions: int) -> int:
        """The longest sequence unless more is asked for, of a model with `positions`."""
        return min(positions, self.original_context) if self.kind == "longrope" else positions

    def longest(self, positions: int) -> int:
        """The longest sequence that may be asked for, of a model with `positions`.

        linear and yarn stretch what the model was trained with, which max_position_embeddings need
        not say.
        """
        if self.kind == "linear":
            return max(positions, math.floor(positions * self.factor))
        if self.kind == "yarn":
            return max(positions, math.floor(self.original_context * self.factor))
        return positions

    def line(self, length: int) -> str | None:
        """What was chosen by length, in one line; None where nothing was."""
        if not self.variant:
            return None
        side = "exceeds" if self.variant == "long" else "does not exceed"
        return (
            f"longrope: the {self.variant} factors at every position, since the longest sequence "
            f"({length} tokens, --max-model-len) {side} the {self.original_context} that the model "
            "was trained with"
        )

    def report(self) -> dict[str, Any]:
        """The kind and what was chosen by length, as --json prints them."""
        return {
            "kind": self.kind,
            "variant": self.variant or None,
            "original_length": self.original_context or None,
        }


def inverse_frequencies(spec: RotarySpec, head_size: int) -> torch.Tensor:
    """Return the rotary frequencies, float64 [D/2].

    Formulas are those of transformers' modeling_rope_utils; dynamic scaling has no effect up to the
    length that the model was trained with.
    """
    if spec.kind == "yarn":
        return _yarn(spec, head_size)
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64) / head_size
    if spec.kind == "longrope":
        factors = spec.long_factor if spec.variant == "long" else spec.short_factor
        return 1.0 / (torch.tensor(factors, dtype=torch.float64) * spec.theta**exponents)
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


def _yarn(spec: RotarySpec, head_size: int) -> torch.Tensor:
    """High frequencies are kept, low ones divided by `factor`, those between blended by a ramp."""

    def dimension(rotations: float) -> float:
        turned = math.log(spec.original_context / (rotations * 2 * math.pi))
        return head_size * turned / (2 * math.log(spec.theta))

    low, high = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(head_size // 2, dtype=torch.float64) - low) / (high - low)
    kept = 1 - ramp.clamp(0, 1)
    periods = spec.theta ** (torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    return 1.0 / (spec.factor * periods) * (1 - kept) + 1.0 / periods * kept


def rotary_tables(spec: RotarySpec, head_size: int, positions: int) -> tuple[torch.Tensor, ...]:
    """Return (cos, sin), float32 [positions, D/2], computed in float64 and rounded once.

    Both are multiplied by the attention factor before they are rounded.
    """
    frequencies = inverse_frequencies(spec, head_size)
    cos, sin = (torch.empty(positions, head_size // 2) for _ in range(2))
    for first in range(0, positions, _ROWS):
        rows = slice(first, min(first + _ROWS, positions))
        angles = torch.outer(torch.arange(rows.start, rows.stop, dtype=torch.float64), frequencies)
        cos[rows], sin[rows] = (
            table * spec.attention_factor for table in (angles.cos(), angles.sin())
        )
    return cos, sin
