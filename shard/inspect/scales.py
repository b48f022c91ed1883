"""Scales: their range, and those that no quantizer means to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from isobit.findings import Finding, Severity

from ..names import by_family, layer_of, places, plural, spread

SMALLEST_NORMAL = 2.0**-14
"""Below it float16 has fewer than 11 significant bits."""
MEDIAN_OF = 1 << 15
"""A median is taken over about this many scales, evenly spread: it is shown, not judged by."""
OUTLIER = 4096.0
"""Largest scale over median. A flipped top bit of a float16 exponent multiplies by 65536; outlier
channels of trained models stay below some hundreds."""
TINY_SHARE = 0.01
"""Share of subnormal float16 scales from which they are worth a warning."""


@dataclass(frozen=True, kw_only=True)
class ScaleStats:
    """Scales of one weight. Range and median are over finite ones of live groups; None without."""

    count: int
    low: float | None = None
    median: float | None = None
    high: float | None = None
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    negative: int = 0
    subnormal: int = 0
    stored_half: bool = False

    @property
    def spread(self) -> float:
        """Largest over median scale; 0 where that says nothing."""
        return self.high / self.median if self.high and self.median and self.median > 0 else 0.0


def scale_stats(scales: torch.Tensor, dead: torch.Tensor | None = None) -> ScaleStats:
    """Look at the scales of one weight; two passes where nothing is wrong.

    The scale of a `dead` group (padding, for one) may be anything, so range and median leave it
    out.
    """
    low, high = (float(end) for end in torch.aminmax(scales))
    sound = abs(low) < torch.inf and abs(high) < torch.inf
    nan = 0 if sound else int(scales.isnan().sum())
    infinite = 0 if sound else int(scales.isinf().sum())
    zeros = negative = subnormal = 0
    if not low >= SMALLEST_NORMAL:
        zeros, negative = int((scales == 0).sum()), int((scales < 0).sum())
        subnormal = int((scales.float().abs() < SMALLEST_NORMAL).sum()) - zeros
    live = scales.flatten() if dead is None else scales[~dead]
    live = live if sound else live[live.isfinite()]
    median = None
    if len(live):
        median = float(live[:: max(1, len(live) // MEDIAN_OF)].float().median())
        low, high = (float(end) for end in torch.aminmax(live))
    return ScaleStats(
        count=scales.numel(),
        low=None if median is None else low,
        median=median,
        high=None if median is None else high,
        nan=nan,
        infinite=infinite,
        zeros=zeros,
        negative=negative,
        subnormal=subnormal,
        stored_half=scales.dtype == torch.float16,
    )


def scale_findings(found: Mapping[str, ScaleStats]) -> list[Finding]:
    """What is odd about scales, by name of their tensor. NaN is reported with other tensors'."""
    findings = []
    zero = {name: stats.zeros for name, stats in found.items() if stats.zeros}
    if zero:
        findings.append(
            _counted(
                "warning",
                "W-SCALE-ZERO",
                zero,
                "of 0: whatever the codes say, those weights are 0",
                "if the weights were not zero there, quantize the model again",
            )
        )
    negative = {name: stats.negative for name, stats in found.items() if stats.negative}
    if negative:
        findings.append(
            _counted(
                "warning",
                "W-SCALE-SIGN",
                negative,
                "below 0. The arithmetic holds, but no known quantizer writes them",
                "compare the files with their source (--sha256)",
            )
        )
    tiny = {name: stats.subnormal for name, stats in found.items() if stats.subnormal}
    if tiny:
        bad = any(s.stored_half and s.subnormal > TINY_SHARE * s.count for s in found.values())
        findings.append(
            _counted(
                "warning" if bad else "note",
                "W-SCALE-TINY" if bad else "N-SCALE-TINY",
                tiny,
                f"below {SMALLEST_NORMAL:.3g}, the smallest normal float16: there "
                "float16 has less than its 11 bits, and an engine that computes in it loses more",
                "prefer bfloat16 or float32 scales: quantize the model again",
            )
        )
    far = {name: round(stats.spread) for name, stats in found.items() if stats.spread > OUTLIER}
    if far:
        findings.append(
            Finding(
                severity="warning",
                code="W-SCALE-OUTLIER",
                where=places(list(far)),
                what=f"a scale is more than {OUTLIER:.0f} times its weight's median. Outlier "
                "channels stay below some hundreds; one flipped bit of an exponent gives 65536"
                + spread(far, lambda same: f"{max(far[name] for name in same)} x the median"),
                numbers={"times_median": far, "limit": OUTLIER},
                remedy="compare the files with their source (--sha256)",
            )
        )
    return findings


def _counted(
    severity: Severity, code: str, counts: dict[str, int], what: str, remedy: str
) -> Finding:
    several = len(by_family(counts)) > 1
    return Finding(
        severity=severity,
        code=code,
        where=places(list(counts)),
        what=f"{plural(sum(counts.values()), 'scale')} {what}"
        + (spread(counts, lambda same: str(sum(counts[n] for n in same))) if several else ""),
        numbers={"tensors": counts},
        remedy=remedy,
    )


def scale_report(found: Mapping[str, ScaleStats]) -> dict[str, Any]:
    """All scales together and by module family. The median is the median of weights' medians."""
    families: dict[str, list[ScaleStats]] = {}
    for name, stats in found.items():
        module = name.rsplit(".", 1)[0].removesuffix(".weight")
        short = module.rpartition(".")[2] if layer_of(name) is not None else module
        families.setdefault(short, []).append(stats)
    together = _together(list(found.values()))
    return {**together, "by_module": {name: _together(all_) for name, all_ in families.items()}}


def _together(stats: list[ScaleStats]) -> dict[str, Any]:
    medians = sorted(s.median for s in stats if s.median is not None)
    return {
        "tensors": len(stats),
        "min": min((s.low for s in stats if s.low is not None), default=None),
        "median": medians[len(medians) // 2] if medians else None,
        "max": max((s.high for s in stats if s.high is not None), default=None),
        "zeros": sum(s.zeros for s in stats),
        "negative": sum(s.negative for s in stats),
        "subnormal_fp16": sum(s.subnormal for s in stats),
        "nan": sum(s.nan for s in stats),
        "infinite": sum(s.infinite for s in stats),
    }
