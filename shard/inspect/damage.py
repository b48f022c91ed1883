"""Damage by quantization that shows without the original model: saturated codes, dead groups.

Where the limits come from. A quantizer that takes its step from the extremes of a group puts about
two codes of the group at the ends, a share of 2 / group. Gaussian weights have 10 % more there when
the step is 1.5 times too small for a group of 128, which no search for the best clipping chooses;
40 % more needs a step 3 times too small, or bytes that are not codes. A group is dead when it holds
nothing but its zero point: weights that are not all zero always have a code elsewhere, so outside
of padding none should be. A group with one other code throughout is no weight at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isobit.findings import Finding, Severity

from ..names import places, plural, spread
from .scales import OUTLIER
from .weights import WeightHealth

SATURATED_WARNING = 0.10
SATURATED_ERROR = 0.40
DEAD_ERROR = 0.5
NF4_BLOCK = 64


def limits(health: WeightHealth) -> tuple[float, float]:
    """Shares of codes at the ends from which a weight is suspicious, and damaged."""
    scheme, module = health.module.scheme, health.module
    width = NF4_BLOCK if health.module.parts.packing == "nf4" else scheme.group_width(module.k)
    expected = min(2 / width, 0.5)
    return expected + SATURATED_WARNING, min(expected + SATURATED_ERROR, 0.95)


def badness(health: WeightHealth) -> float:
    """How far a weight's worst measure has gone towards its limit; 1 is suspicious."""
    dead = (health.dead - health.padding) / health.groups
    not_finite = health.scales.nan + health.scales.infinite
    return max(
        health.at_ends / limits(health)[0],
        1 + dead / DEAD_ERROR if dead else 0.0,
        health.scales.spread / OUTLIER,
        1 + not_finite / health.scales.count if not_finite else 0.0,
        1 + health.stuck / health.groups if health.stuck else 0.0,
    )


def damage_report(found: Sequence[WeightHealth]) -> list[dict[str, Any]]:
    """One row per quantized weight, the worst first."""
    rows = [
        {
            "module": health.module.name,
            "bits": health.module.scheme.bits,
            "group_size": health.module.scheme.group_size,
            "saturated": round(health.at_ends, 6),
            "saturated_limit": round(limits(health)[0], 6),
            "groups": health.groups,
            "dead_groups": health.dead,
            "padding_groups": health.padding,
            "stuck_groups": health.stuck,
            "rows": health.rows,
            "dead_rows": health.dead_rows,
            "scale_max_over_median": round(health.scales.spread, 3),
            "badness": round(badness(health), 4),
        }
        for health in found
    ]
    return sorted(rows, key=lambda row: -row["badness"])


def damage_findings(found: Sequence[WeightHealth]) -> list[Finding]:
    """Findings of kind error, warning and note over all quantized weights."""
    ends = [health for health in found if health.at_ends > limits(health)[0]]
    broken = [health for health in ends if health.at_ends > limits(health)[1]]
    clipped = [health for health in ends if health not in broken]
    dead = [health for health in found if health.dead > health.padding]
    gone = [health for health in dead if health.dead - health.padding > DEAD_ERROR * health.groups]
    some = [health for health in dead if health not in gone]
    padded = [health for health in found if health.padding]
    stuck = [health for health in found if health.stuck]
    findings = []
    if stuck:
        findings.append(_stuck(stuck))
    if broken:
        findings.append(_saturated(broken, "error"))
    if clipped:
        findings.append(_saturated(clipped, "warning"))
    if gone:
        findings.append(_dead(gone, "error"))
    if some:
        findings.append(_dead(some, "warning"))
    if padded:
        findings.append(_padded(padded))
    return findings


def _saturated(found: Sequence[WeightHealth], severity: Severity) -> Finding:
    shares = {health.module.name: health.at_ends for health in found}
    at = {health.module.name: limits(health)[severity == "error"] for health in found}

    def text(same: list[str]) -> str:
        worst = max(shares[name] for name in same)
        return (
            f"{'up to ' if len(same) > 1 else ''}{worst:.1%} of its codes, limit {at[same[0]]:.1%}"
        )

    return Finding(
        severity=severity,
        code="E-CODES-SATURATED" if severity == "error" else "W-CODES-SATURATED",
        where=places(list(shares)),
        what="codes are crowded at the ends of their range (0 and the largest): the step is far "
        "too small, or the bytes are not codes" + spread(shares, text),
        numbers={name: {"share": round(shares[name], 6), "limit": at[name]} for name in shares},
        remedy="compare the files with their source (--sha256); if they are the same, quantize "
        "the model again",
    )


def _dead(found: Sequence[WeightHealth], severity: Severity) -> Finding:
    counts = {health.module.name: health for health in found}

    def text(same: list[str]) -> str:
        all_ = [counts[name] for name in same]
        groups, dead = sum(h.groups for h in all_), sum(h.dead - h.padding for h in all_)
        rows = sum(h.dead_rows for h in all_)
        whole = f", among them {plural(rows, 'whole output row')}" if rows else ""
        return f"{dead} of {groups} groups{whole}"

    return Finding(
        severity=severity,
        code="E-CODES-DEAD" if severity == "error" else "W-CODES-DEAD",
        where=places(list(counts)),
        what="groups hold nothing but zeros. Weights that are not all zero always leave a code "
        "elsewhere" + spread(counts, text),
        numbers={
            name: {
                "dead_groups": health.dead - health.padding,
                "groups": health.groups,
                "dead_rows": health.dead_rows,
            }
            for name, health in counts.items()
        },
        remedy="compare the files with their source (--sha256); if the original model has no "
        "zeros there, quantize it again",
    )


def _stuck(found: Sequence[WeightHealth]) -> Finding:
    counts = {health.module.name: health for health in found}

    def text(same: list[str]) -> str:
        stuck, groups = (sum(getattr(counts[n], key) for n in same) for key in ("stuck", "groups"))
        return f"{stuck} of {groups} groups"

    return Finding(
        severity="error",
        code="E-CODES-STUCK",
        where=places(list(counts)),
        what="every code of a group is the same and not the zero point, as in a hole of a file "
        "that was not fetched as a whole" + spread(counts, text),
        numbers={name: {"stuck": h.stuck, "groups": h.groups} for name, h in counts.items()},
        remedy="compare the files with their source (--sha256)",
    )


def _padded(found: Sequence[WeightHealth]) -> Finding:
    counts = {health.module.name: health.padding for health in found}
    return Finding(
        severity="note",
        code="N-CODES-PADDING",
        where=places(list(counts)),
        what="rows or columns of zeros at the end, as padding leaves them"
        + spread(counts, lambda same: plural(counts[same[0]], "group")),
        numbers=counts,
        remedy="nothing to do: they add exact zeros",
    )
