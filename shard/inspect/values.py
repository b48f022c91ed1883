"""Findings about the numbers in tensors: NaN, infinity, nothing but zeros, a shape that lies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from isobit.findings import Finding, Severity

from ..names import places, plural, spread
from .tensors import PIECE_BYTES, NumberCount
from .weights import WeightHealth


def not_finite_findings(
    numbers: Mapping[str, NumberCount], unread: Collection[str]
) -> list[Finding]:
    """NaN and infinity: an error in tensors that the model reads, a warning in others."""
    bad = {name: count for name, count in numbers.items() if count.nan or count.infinite}
    findings = []
    kinds: tuple[tuple[Severity, str, list[str]], ...] = (
        ("error", "E-CKPT-NAN", [name for name in bad if name not in unread]),
        ("warning", "W-CKPT-NAN", [name for name in bad if name in unread]),
    )
    for severity, code, names in kinds:
        if not names:
            continue

        def text(same: list[str]) -> str:
            return (
                f"{sum(bad[name].nan for name in same)} NaN, "
                f"{sum(bad[name].infinite for name in same)} infinite"
            )

        findings.append(
            Finding(
                severity=severity,
                code=code,
                where=places(names),
                what=f"NaN or infinity in {plural(len(names), 'tensor')}{spread(names, text)}",
                numbers={
                    name: {"nan": bad[name].nan, "infinite": bad[name].infinite} for name in names
                },
                remedy="the file is damaged, or quantization met a group of zeros: download it "
                "again or quantize it again",
            )
        )
    return findings


def zero_tensor_findings(
    numbers: Mapping[str, NumberCount], unread: Collection[str]
) -> list[Finding]:
    """Weights and norms that are zero in long runs. A bias of zeros is common and harmless."""
    weights = {n: c for n, c in numbers.items() if n.endswith("weight") and n not in unread}
    names = [name for name, count in weights.items() if count.all_zero]
    holes = {n: c.zero_run for n, c in weights.items() if c.zero_run and not c.all_zero}
    remedy = "a download may not have finished: compare the files with their source (--sha256)"
    findings = []
    if names:
        findings.append(
            Finding(
                severity="warning",
                code="W-CKPT-ZERO",
                where=places(names),
                what=f"zero throughout: {plural(len(names), 'tensor')}{spread(names)}",
                numbers={"tensors": names},
                remedy=remedy,
            )
        )
    if holes:
        findings.append(
            Finding(
                severity="warning",
                code="W-CKPT-HOLE",
                where=places(list(holes)),
                what=f"runs of {PIECE_BYTES >> 20} MiB and more that are zero throughout"
                + spread(holes, lambda same: f"{sum(holes[n] for n in same)} values"),
                numbers={"zero_values": holes},
                remedy=remedy,
            )
        )
    return findings


def stored_shape_findings(weights: Sequence[WeightHealth]) -> list[Finding]:
    """compressed-tensors stores the shape of a weight as a tensor of its own."""
    wrong = {
        health.module.tensor("weight_shape"): health
        for health in weights
        if health.stored_shape not in (None, (health.module.n, health.module.k))
    }
    if not wrong:
        return []

    def text(same: list[str]) -> str:
        health = wrong[same[0]]
        shape = list(health.stored_shape or ())
        return f"{shape}, the weight is [{health.module.n}, {health.module.k}]"

    return [
        Finding(
            severity="error",
            code="E-CONFIG-SHAPE",
            where=places(list(wrong)),
            what=f"weight_shape is not the shape of the weight{spread(wrong, text)}",
            numbers={name: list(health.stored_shape or ()) for name, health in wrong.items()},
            remedy="the tensor holds the true shape of the whole weight: if the checkpoint was "
            "cut or padded by hand, it must be changed too",
        )
    ]
