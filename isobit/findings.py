"""What a command finds: inspect in a folder, the doctor in a run, the cluster check on hosts.

The standard library is all this needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Severity = Literal["ok", "note", "skipped", "warning", "error"]
"""An error keeps a model from running or from being right; a warning may make it slow, or is known
to lead to trouble; a note explains."""
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the best to the worst."""
Kind = Literal["damaged", "misused", "not-supported"]
"""Of an error about files: wrong, contradicting each other, or right and not for isobit."""
KINDS: tuple[Kind, ...] = get_args(Kind)
"""From the one that weighs most."""
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
    """One thing, in one sentence, with its place, its evidence and what to do about it.

    `remedy` is a command or an action, empty where nothing is to be done. `code` is one of isobit's
    (E, W, N), `check` the check that found it; what a command does not know stays at its default.

    Places: `where` a file or tensor, `hosts` those of a cluster, `site` a place in the forward
    pass, `op` a module or operation by its name in the model ("mlp.down_proj").

    `kind` tells errors about files apart; an error of a run has a `verdict` other than "healthy",
    and says in `reason` why its confidence is what it is. `numbers` and `evidence` are what was
    measured, for programs and for people.
    """

    severity: Severity
    what: str
    remedy: str = ""
    code: str = ""
    check: str = ""
    where: str = ""
    hosts: tuple[str, ...] = ()
    site: str | None = None
    layer: int | None = None
    op: str | None = None
    rank: int | None = None
    atom: int | None = None
    kind: Kind = "damaged"
    verdict: Verdict = "healthy"
    numbers: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()
    confidence: Confidence = "high"
    reason: str = ""

    def __post_init__(self) -> None:
        assert not self.check or (self.severity == "error") == (self.verdict != "healthy"), (
            self.what
        )


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then notes; otherwise in the order in which they were made."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Those that count for the verdict."""
    return [finding for finding in findings if finding.severity == "error"]


def status(severity: Severity) -> str:
    """The word that `isobit doctor --json` and `isobit cluster check --json` have for it."""
    return "fault" if severity == "error" else severity
