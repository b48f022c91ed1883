"""One verdict over all findings: the cause goes before what it leads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isobit.findings import CONFIDENCES, VERDICTS, Finding, Verdict, errors_of

from .findings import PLACE, CheckResult, finding_report


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The checks, the finding that the verdict rests on (None when healthy), and the replay file.

    `case` says what was examined: model, degree, settings, prompts.
    """

    case: dict[str, Any]
    checks: tuple[CheckResult, ...]
    decisive: Finding | None
    repro: str | None = None

    @property
    def verdict(self) -> Verdict:
        return "healthy" if self.decisive is None else self.decisive.verdict

    def report(self) -> dict[str, Any]:
        """The outcome as `isobit doctor --json` prints it."""
        found = None if self.decisive is None else finding_report(self.decisive)
        return {
            "verdict": self.verdict,
            "what": "" if self.decisive is None else self.decisive.what,
            **{key: None if found is None else found[key] for key in PLACE},
            "evidence": [] if found is None else found["evidence"],
            "confidence": self._confidence() if found is None else found["confidence"],
            "remedy": "" if found is None else found["remedy"],
            "next_step": "" if found is None else found["remedy"],
            "repro": self.repro,
            "case": self.case,
            "checks": [check.report() for check in self.checks],
        }

    def _confidence(self) -> dict[str, str]:
        """A clean bill of health is as good as the checks that ran."""
        left_out = [check.name for check in self.checks if check.severity == "skipped"]
        if left_out:
            return {"level": "medium", "reason": f"not run: {', '.join(left_out)}"}
        return {"level": "high", "reason": "every check ran and none found a fault"}


def decisive(results: Sequence[CheckResult]) -> Finding | None:
    """The fault that explains the others, None when there is none.

    One of low confidence counts only where there is no other. Then the earliest of VERDICTS wins,
    then the highest confidence, then the first found.
    """
    found = [finding for result in results for finding in errors_of(result.findings)]

    def order(finding: Finding) -> tuple[bool, int, int]:
        confidence = CONFIDENCES.index(finding.confidence)
        return not confidence, VERDICTS.index(finding.verdict), -confidence

    return min(found, key=order, default=None)


def is_certain(finding: Finding | None, to_come: Sequence[Verdict]) -> bool:
    """Whether nothing that later checks can find would go before this finding."""
    if finding is None or finding.confidence != "high":
        return False
    place = VERDICTS.index(finding.verdict)
    return all(place <= VERDICTS.index(verdict) for verdict in to_come)
