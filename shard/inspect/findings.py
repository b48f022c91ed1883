"""What inspection finds in a folder: findings made of errors, the verdict over all, and JSON.

Codes begin with E (the checkpoint is damaged, contradicts itself or cannot be run), W (it can be
loaded, and something about it is not right) or N (worth knowing). Codes that the loader knows mean
the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from isobit.errors import DamagedError, InputError, NotSupportedError
from isobit.findings import KINDS, Finding, Kind

Verdict = Literal["healthy", "suspicious", "not-supported", "misused", "damaged"]
CORRECT = "correct the settings that are named; the tensors were not found to be wrong"
UNSUPPORTED = "isobit cannot run this model, and nothing says that the file is wrong"


def finding_report(finding: Finding) -> dict[str, Any]:
    """A finding as `isobit inspect --json` prints it; `way_out` is the old name of `remedy`."""
    return {
        "severity": finding.severity,
        "kind": finding.kind if finding.severity == "error" else None,
        "code": finding.code,
        "where": finding.where,
        "what": finding.what,
        "numbers": dict(finding.numbers),
        "remedy": finding.remedy,
        "way_out": finding.remedy,
    }


def from_error(error: InputError, folder: Path, remedy: str) -> Finding:
    """What a loader would raise, with its code and text; the path in front becomes `where`.

    `remedy` is for a file that is wrong.
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
        remedy={"damaged": remedy, "misused": CORRECT, "not-supported": UNSUPPORTED}[kind],
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
