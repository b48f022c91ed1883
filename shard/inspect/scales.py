"""Scales: their range, and those that no quantizer means to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .findings import Finding, Severity, by_family, layer_of, listed, place, places

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
    """Scales of one weight. Range and median are over finite ones; None without any."""

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


def scale_stats(scales: torch.Tensor) -> ScaleStats:
    """Look at the scales of one weight; two passes where nothing is wrong."""
    half, count = scales.dtype == torch.float16, scales.numel()
    low, high = (float(end) for end in torch.aminmax(scales))
    nan = infinite = zeros = negative = subnormal = 0
    values = scales.flatten()
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        nan = int(values.isnan().sum())
        values = values[values.isfinite()]
        infinite = count - nan - len(values)
        if not len(values):
            return ScaleStats(count=count, nan=nan, infinite=infinite, stored_half=half)
        low, high = (float(end) for end in torch.aminmax(values))
    if low < SMALLEST_NORMAL:
        zeros, negative = int((values == 0).sum()), int((values < 0).sum())
        subnormal = int((values.float().abs() < SMALLEST_NORMAL).sum()) - zeros
    sample = values[:: max(1, len(values) // MEDIAN_OF)]
    return ScaleStats(
        count=count,
        low=low,
        median=float(sample.float().median()),
        high=high,
        nan=nan,
        infinite=infinite,
        zeros=zeros,
        negative=negative,
        subnormal=subnormal,
        stored_half=half,
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
                "scales are 0: whatever the codes say, those weights are 0",
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
                "scales are negative. The arithmetic holds, but no known quantizer writes them",
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
                f"scales are below {SMALLEST_NORMAL:.3g}, the smallest normal float16: there "
                "float16 has less than its 11 bits, and an engine that computes in it loses more",
                "prefer bfloat16 or float32 scales: quantize the model again",
            )
        )
    far = {name: round(stats.spread) for name, stats in found.items() if stats.spread > OUTLIER}
    if far:
        lines = [f"{place([name])}: {times} x the median" for name, times in far.items()]
        findings.append(
            Finding(
                severity="warning",
                code="W-SCALE-OUTLIER",
                where=places(list(far)),
                what=f"a scale is more than {OUTLIER:.0f} times its weight's median. Outlier "
                "channels stay below some hundreds; one flipped bit of an exponent gives 65536"
                + listed(lines),
                numbers={"times_median": far, "limit": OUTLIER},
                way_out="compare the files with their source (--sha256)",
            )
        )
    return findings


def _counted(
    severity: Severity, code: str, counts: dict[str, int], what: str, way_out: str
) -> Finding:
    lines = [
        f"{place(names)}: {sum(counts[name] for name in names)}"
        for names in by_family(counts).values()
    ]
    return Finding(
        severity=severity,
        code=code,
        where=places(list(counts)),
        what=f"{sum(counts.values())} {what}{listed(lines) if len(counts) > 1 else ''}",
        numbers={"tensors": counts},
        way_out=way_out,
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
