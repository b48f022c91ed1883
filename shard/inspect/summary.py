"""The report of an inspection, for people and programs alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.findings import Finding

from ..checkpoint.safetensors_file import TensorEntry
from ..checkpoint.safetensors_header import is_file
from ..contents.contradictions import dtype_name
from ..model.spec import ModelSpec
from ..names import plural
from .findings import Verdict, finding_report
from .tensors import NumberCount
from .weights import WeightHealth
from .zero_points import LABELS, found_version, histogram_report

VERSIONS = {"gptq": "v1", "gptq_v2": "v2"}
"""What people call the two labels."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that inspection found out; the fields are those of `isobit inspect --json`."""

    model: str
    verdict: Verdict
    findings: list[Finding]
    format: dict[str, Any]
    files: list[dict[str, Any]]
    tensors: dict[str, Any]
    scales: dict[str, Any]
    zero_points: dict[str, Any]
    g_idx: dict[str, dict[str, int]]
    damage: list[dict[str, Any]]
    throughput_mb_s: float

    def report(self) -> dict[str, Any]:
        """The report as `isobit inspect --json` prints it."""
        return {
            "model": self.model,
            "verdict": self.verdict,
            "findings": [finding_report(finding) for finding in self.findings],
            "format": self.format,
            "files": self.files,
            "tensors": self.tensors,
            "scales": self.scales,
            "zero_points": self.zero_points,
            "g_idx": self.g_idx,
            "damage": self.damage,
            "throughput_mb_s": self.throughput_mb_s,
        }


def format_report(
    spec: ModelSpec | None, method: str | None, found: Sequence[WeightHealth]
) -> dict[str, Any]:
    """Method, version and schemes, with what the config says and what the data show."""
    if spec is None or spec.quantization is None:
        dense = spec is not None
        return {
            "method": method or ("dense" if dense else "unknown"),
            "dtype": spec.dtype if spec else None,
            "version": None,
            "evidence": [
                "config.json names no quantization"
                if dense
                else "config.json says nothing that isobit understands"
            ],
            "schemes": [],
        }
    schemes: dict[tuple[Any, ...], int] = {}
    stored: Counter[str] = Counter()
    for health in found:
        scheme = health.module.scheme
        parts = health.module.parts
        stored[f"{parts.codes} and {parts.scales}"] += 1
        key = (scheme.format, scheme.bits, scheme.group_size, scheme.symmetric,
               scheme.act_order, scheme.activation)  # fmt: skip
        schemes[key] = schemes.get(key, 0) + 1
    names = ("format", "bits", "group_size", "symmetric", "act_order", "activation")
    version, evidence = _version(found)
    return {
        "method": spec.quantization.method,
        "dtype": spec.dtype,
        "version": version,
        "evidence": [
            spec.quantization.evidence,
            *(f"{plural(count, 'weight')} stored in {names}" for names, count in stored.items()),
            *evidence,
        ],
        "schemes": [
            {**dict(zip(names, key, strict=True)), "modules": count}
            for key, count in schemes.items()
        ],
    }


def _version(found: Sequence[WeightHealth]) -> tuple[str | None, list[str]]:
    """The version of a GPTQ file: what symmetric zero points prove, else what the label says."""
    proofs: dict[str, list[WeightHealth]] = {}
    labels: dict[str, int] = {}
    for health in found:
        scheme = health.module.scheme
        if scheme.format != "gptq" or health.zeros is None:
            continue
        label = LABELS[scheme.zero_offset]
        labels[label] = labels.get(label, 0) + 1
        if version := found_version(health.zeros, scheme.bits):
            proofs.setdefault(version, []).append(health)
    evidence = []
    for version, weights in proofs.items():
        stored = " or ".join(sorted({str(_only(health)) for health in weights}))
        evidence.append(
            f"{plural(len(weights), 'weight')} with every zero point stored as {stored}, as "
            f"{VERSIONS[version]} ({version}) has it"
        )
    if not proofs and labels:
        evidence.append("zero points vary (asymmetric): the data do not prove a version")
    versions = [VERSIONS[label] for label in (proofs or labels)]
    return " and ".join(versions) or None, evidence


def _only(health: WeightHealth) -> int:
    assert health.zeros is not None
    return int(health.zeros.argmax())


def zero_point_report(found: Sequence[WeightHealth]) -> dict[str, dict[str, int]]:
    """Histograms of stored zero points by scheme."""
    sums: dict[str, Any] = {}
    for health in found:
        if health.zeros is not None:
            key = health.module.description
            sums[key] = sums[key] + health.zeros if key in sums else health.zeros
    return {key: histogram_report(histogram) for key, histogram in sums.items()}


def tensor_report(
    entries: Mapping[str, TensorEntry],
    numbers: Mapping[str, NumberCount],
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> dict[str, Any]:
    """Tensors, their dtypes, and what is not finite or not there."""
    dtypes: dict[str, dict[str, int]] = {}
    for entry in entries.values():
        kind = dtypes.setdefault(dtype_name(entry.dtype), {"tensors": 0, "bytes": 0})
        kind["tensors"] += 1
        kind["bytes"] += entry.nbytes
    return {
        "count": len(entries),
        "bytes": sum(entry.nbytes for entry in entries.values()),
        "dtypes": dtypes,
        "missing": list(missing),
        "unexpected": list(unexpected),
        "not_finite": {
            name: {"nan": count.nan, "infinite": count.infinite}
            for name, count in numbers.items()
            if count.nan or count.infinite
        },
    }


def file_report(
    files: Sequence[Path], entries: Mapping[str, TensorEntry], digests: Mapping[Path, str]
) -> list[dict[str, Any]]:
    """Every file that was read."""
    counts = dict.fromkeys(files, 0)
    for entry in entries.values():
        counts[entry.file] += 1
    return [
        {
            "name": path.name,
            "bytes": path.stat().st_size if is_file(path) else 0,
            "tensors": count,
            **({"sha256": digests[path]} if path in digests else {}),
        }
        for path, count in counts.items()
    ]
