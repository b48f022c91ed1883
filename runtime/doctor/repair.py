"""Which halves of which layers to give more bits, and the command that does."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...shard.formats.scheme import CHANNEL, WeightScheme
from ...shard.model.spec import ModelSpec, read_spec
from ...shard.plan.modules import layer_modules
from .damage import Damage, HalfDamage

WIDER = {4: 8, 8: 16}


@dataclass(frozen=True, kw_only=True)
class Repair:
    """`ranked`: the halves of layers, the most damaged first. `widened` get `wide` bits, the others
    keep `narrow`; `left` is what the divergence would then be, None where it cannot be predicted.
    """

    ranked: tuple[HalfDamage, ...]
    widened: tuple[HalfDamage, ...]
    narrow: int
    wide: int
    left: float | None
    command: str

    def bits(self) -> str:
        """In words."""
        if len(self.widened) == len(self.ranked):
            return f"{self.wide} everywhere"
        names = ", ".join(half.name for half in self.widened)
        left = "" if self.left is None else f"; {self.left:.2g} nats would be left"
        return f"{self.wide} for {names}, {self.narrow} elsewhere{left}"

    def report(self) -> dict[str, Any]:
        """For reports: bits by the name of half a layer, in the order of damage."""
        wide = {half.name for half in self.widened}
        widths = {h.name: self.wide if h.name in wide else self.narrow for h in self.ranked}
        return {"bits": widths, "divergence": self.left, "command": self.command}


def proposal(
    model: Path, reference: Path, spec: ModelSpec, damage: Damage, wanted: float
) -> Repair:
    """Widen the most damaged halves of layers until `wanted` nats or less are left.

    Divergences of parts that are quantized alone add up to that of the whole, within a fifth
    (docs/quantization.md); what is left is the whole's share of the parts that stay narrow. Without
    divergences of parts everything is widened.
    """
    ranked = tuple(sorted(damage.halves, key=_order))
    scheme = _scheme(model, spec)
    narrow = scheme.bits if scheme else 16
    wide = WIDER.get(narrow, 16)
    costs = [half.kl for half in ranked]
    count, left = len(ranked), None
    if all(cost is not None for cost in costs):
        total = sum(cost or 0.0 for cost in costs)
        shares = [damage.kl * (cost or 0.0) / total if total else 0.0 for cost in costs]
        remaining = [sum(shares[number:]) for number in range(len(shares) + 1)]
        count = next(number for number, each in enumerate(remaining) if each <= wanted)
        left = remaining[count]
    command = _command(model, reference, ranked[:count], count == len(ranked), scheme, wide)
    return Repair(
        ranked=ranked,
        widened=ranked[:count],
        narrow=narrow,
        wide=wide,
        left=left,
        command=command,
    )


def _order(half: HalfDamage) -> tuple[float, float]:
    return -(half.kl or 0.0), half.sqnr_db if half.sqnr_db is not None else float("inf")


def _scheme(model: Path, spec: ModelSpec) -> WeightScheme | None:
    """The narrowest scheme in the model."""
    own = read_spec(model)
    modules = [m for n in range(spec.layers) for m in layer_modules(spec, n).values()]
    schemes = [scheme for m in modules if (scheme := own.scheme(m.name)) is not None]
    return min(schemes, key=lambda scheme: scheme.bits, default=None)


def _command(
    model: Path,
    reference: Path,
    widened: tuple[HalfDamage, ...],
    everything: bool,
    scheme: WeightScheme | None,
    wide: int,
) -> str:
    """Runs as it is: rounding to nearest needs no text. Empty when nothing has to be done."""
    if not widened:
        return ""
    if scheme is None or (everything and wide == 16):
        return f"run the reference itself: {shlex.quote(str(reference))}"
    words = ["isobit", "quantize", str(reference), f"{str(model).rstrip('/')}-wider"]
    if scheme.group_size != CHANNEL:
        words += ["--group-size", str(scheme.group_size)]
    if everything:
        return shlex.join([*words, "--scheme", "int8"])
    if scheme.bits != 4:
        words += ["--scheme", "int8"]
    for half in widened:
        words += ["--keep", f"{half.name}.*={wide}"]
    return shlex.join(words)
