"""What inspection finds: one frozen record per problem, and the verdict over all of them.

Codes begin with E (the checkpoint is damaged, contradicts itself or cannot be run), W (it can be
loaded, and something about it is not right) or N (worth knowing). Codes that the loader knows mean
the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from isobit.errors import InputError, NotSupportedError

Severity = Literal["error", "warning", "note"]
Verdict = Literal["healthy", "suspicious", "not-supported", "damaged"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
UNSUPPORTED = "isobit cannot run this model, and nothing says that the file is wrong"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem, wherever it occurs. `numbers` holds the evidence for programs.

    `kind` tells errors apart: a file that is wrong, or one that is right and cannot be run.
    """

    severity: Severity
    code: str
    where: str
    what: str
    way_out: str
    numbers: dict[str, Any] = field(default_factory=dict)
    kind: Literal["damaged", "not-supported"] = "damaged"

    def report(self) -> dict[str, Any]:
        """The finding as `isobit inspect --json` prints it."""
        return {
            "severity": self.severity,
            "kind": self.kind if self.severity == "error" else None,
            "code": self.code,
            "where": self.where,
            "what": self.what,
            "numbers": self.numbers,
            "way_out": self.way_out,
        }


def from_error(error: InputError, folder: Path, way_out: str) -> Finding:
    """What a loader would raise, with its code and text; the path in front becomes `where`.

    `way_out` is for a file that is wrong.
    """
    supported = not isinstance(error, NotSupportedError)
    if error.message.startswith(str(folder)):
        where, _, what = error.message[len(str(folder)) :].partition(":")
        where = where.strip("/") or str(folder)
    else:
        where, what = "config.json", error.message.removeprefix("config.json: ")
    return Finding(
        severity="error",
        kind="damaged" if supported else "not-supported",
        code=error.code,
        where=where,
        what=what.strip(),
        way_out=way_out if supported else UNSUPPORTED,
    )


def verdict(findings: Iterable[Finding]) -> Verdict:
    """By the worst finding: an error says damaged or not supported, a warning suspicious."""
    found = list(findings)
    kinds = {finding.kind for finding in found if finding.severity == "error"}
    if kinds:
        return "damaged" if "damaged" in kinds else "not-supported"
    return "suspicious" if any(each.severity == "warning" for each in found) else "healthy"


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; otherwise in the order in which they were made."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
