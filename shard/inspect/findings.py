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

from isobit.errors import DamagedError, InputError, NotSupportedError

Severity = Literal["error", "warning", "note"]
Kind = Literal["damaged", "misused", "not-supported"]
Verdict = Literal["healthy", "suspicious", "not-supported", "misused", "damaged"]
KINDS: tuple[Kind, ...] = ("damaged", "misused", "not-supported")
"""From the one that weighs most."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
CORRECT = "correct the settings that are named; the tensors were not found to be wrong"
UNSUPPORTED = "isobit cannot run this model, and nothing says that the file is wrong"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem, wherever it occurs. `numbers` holds the evidence for programs.

    `kind` tells errors apart: a file that is wrong, files that are whole and contradict each other,
    or one that is right and cannot be run.
    """

    severity: Severity
    code: str
    where: str
    what: str
    way_out: str
    numbers: dict[str, Any] = field(default_factory=dict)
    kind: Kind = "damaged"

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
    kind = _kind(error)
    if error.message.startswith(str(folder)):
        where, _, what = error.message[len(str(folder)) :].partition(":")
        where = where.strip("/") or str(folder)
    else:
        where, what = "config.json", error.message.removeprefix("config.json: ")
    return Finding(
        severity="error",
        kind=kind,
        code=error.code,
        where=where,
        what=what.strip(),
        way_out={"damaged": way_out, "misused": CORRECT, "not-supported": UNSUPPORTED}[kind],
    )


def _kind(error: InputError) -> Kind:
    if isinstance(error, DamagedError):
        return "damaged"
    return "not-supported" if isinstance(error, NotSupportedError) else "misused"


def verdict(findings: Iterable[Finding]) -> Verdict:
    """By the worst finding: an error says what its kind says, a warning suspicious."""
    found = list(findings)
    kinds = {finding.kind for finding in found if finding.severity == "error"}
    for kind in KINDS:
        if kind in kinds:
            return kind
    return "suspicious" if any(each.severity == "warning" for each in found) else "healthy"


def sorted_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; otherwise in the order in which they were made."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
