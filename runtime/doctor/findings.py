"""What a check comes to: its findings with what it measured, and both as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from isobit.findings import SEVERITIES, Finding, Severity, status

PLACE = ("site", "layer", "op", "rank", "atom")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """How a check went. `measured` holds what it measured beside its findings, for reports."""

    name: str
    seconds: float
    findings: tuple[Finding, ...]
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """The worst of its findings."""
        found: list[Severity] = ["ok", *(finding.severity for finding in self.findings)]
        return max(found, key=SEVERITIES.index)

    def report(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": status(self.severity),
            "seconds": round(self.seconds, 3),
            "findings": [finding_report(finding) for finding in self.findings],
            "measured": self.measured,
        }


def finding_report(finding: Finding) -> dict[str, Any]:
    """A finding as `isobit doctor --json` prints it; `next_step` is the old name of `remedy`."""
    return {
        "check": finding.check,
        "status": status(finding.severity),
        "what": finding.what,
        "verdict": finding.verdict,
        **{name: getattr(finding, name) for name in PLACE},
        "evidence": [dataclasses.asdict(each) for each in finding.evidence],
        "confidence": {"level": finding.confidence, "reason": finding.reason},
        "remedy": finding.remedy,
        "next_step": finding.remedy,
    }


def skipped(check: str, why: str) -> Finding:
    """The finding of a check that did not run."""
    return Finding(check=check, severity="skipped", what=why)
