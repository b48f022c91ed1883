"""What checks find: frozen records with their evidence. The standard library is all this needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Verdict = Literal[
    "healthy",
    "environment",
    "checkpoint-damaged",
    "config-mismatch",
    "format-mislabelled",
    "not-supported",
    "kernel-fault",
    "shard-fault",
    "rank-divergence",
    "collective-fault",
    "numeric-overflow",
    "quantization-loss",
]
"""After "healthy" from cause to symptom: what stands further left explains what it leads to."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Status = Literal["ok", "note", "skipped", "warning", "fault"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""From the best to the worst."""
Confidence = Literal["low", "medium", "high"]
CONFIDENCES: tuple[Confidence, ...] = get_args(Confidence)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One measurement. `source` says where the threshold comes from."""

    what: str
    measured: str | float | int | None
    threshold: str | float | int | None = None
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a check found, in one sentence, with its place and its evidence.

    Only a finding of status "fault" has a `verdict` other than "healthy", and says in `reason` why
    its confidence is what it is. `next_step` is a command or an action. `op` is a module or
    operation by its name in the model ("mlp.down_proj"), `site` a place in the forward pass.
    """

    check: str
    status: Status
    what: str
    verdict: Verdict = "healthy"
    site: str | None = None
    layer: int | None = None
    op: str | None = None
    rank: int | None = None
    atom: int | None = None
    evidence: tuple[Evidence, ...] = ()
    confidence: Confidence = "high"
    reason: str = ""
    next_step: str = ""

    def __post_init__(self) -> None:
        assert (self.status == "fault") == (self.verdict != "healthy"), self.what

    def report(self) -> dict[str, Any]:
        """The finding as JSON; confidence as {level, reason}."""
        fields = dataclasses.asdict(self)
        reason = fields.pop("reason")
        return fields | {
            "confidence": {"level": self.confidence, "reason": reason},
            "evidence": [dataclasses.asdict(each) for each in self.evidence],
        }


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """How a check went. `measured` holds what it measured beside its findings, for reports."""

    name: str
    seconds: float
    findings: tuple[Finding, ...]
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """The worst status of its findings."""
        statuses: list[Status] = ["ok", *(finding.status for finding in self.findings)]
        return max(statuses, key=STATUSES.index)

    def report(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "findings": [finding.report() for finding in self.findings],
            "measured": self.measured,
        }


def skipped(check: str, why: str) -> Finding:
    """The finding of a check that did not run."""
    return Finding(check=check, status="skipped", what=why)


def faults(findings: Sequence[Finding]) -> list[Finding]:
    """Those that count for the verdict."""
    return [finding for finding in findings if finding.status == "fault"]
