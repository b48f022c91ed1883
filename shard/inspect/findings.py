"""What inspection finds: one frozen record per problem, and the verdict over all of them.

Codes begin with E (the checkpoint is damaged, contradicts itself or cannot be run), W (it can be
loaded, and something about it is not right) or N (worth knowing). Codes that the loader knows mean
the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...kernels.errors import InputError, NotSupportedError

Severity = Literal["error", "warning", "note"]
Verdict = Literal["healthy", "suspicious", "not-supported", "damaged"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
UNSUPPORTED = "isobit cannot run this model, and nothing says that the file is wrong"
MOST_LINES = 12
MOST_LAYERS_NAMED = 4
_LAYER = re.compile(r"\.layers\.(\d+)\.")


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


def family(name: str) -> str:
    """The name with its layer number as `*`: model.layers.*.mlp.up_proj.weight_scale."""
    return _LAYER.sub(".layers.*.", name, count=1)


def layer_of(name: str) -> int | None:
    """The layer that a tensor or module belongs to, None for one outside the layers."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def by_family(names: Iterable[str]) -> dict[str, list[str]]:
    """Names grouped by family, in the order in which the families first occur."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(family(name), []).append(name)
    return families


def place(names: Sequence[str]) -> str:
    """One line for names of one family: the name, or the family and the layers in question."""
    if len(names) == 1:
        return names[0]
    layers = [number for name in names if (number := layer_of(name)) is not None]
    if len(layers) > MOST_LAYERS_NAMED:
        return f"{family(names[0])} ({len(layers)} layers)"
    return f"{family(names[0])} (layers {', '.join(map(str, sorted(layers)))})"


def places(names: Sequence[str]) -> str:
    """Where a finding holds: one place, or how many there are (its text then lists them)."""
    families = by_family(names)
    if len(families) == 1:
        return place(names)
    more = "" if len(names) == len(families) else f", {len(names)} in all"
    return f"{len(families)} places{more}"


def spread(names: Iterable[str], text: Callable[[list[str]], str] = lambda same: "") -> str:
    """What holds where: in line for one place (the finding names it), a list for several."""
    families = list(by_family(names).values())
    if len(families) == 1:
        only = text(families[0])
        return f": {only}" if only else ""
    return listed([": ".join(filter(None, (place(same), text(same)))) for same in families])


def plural(count: int, noun: str) -> str:
    """1 tensor, 2 tensors."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(lines: Sequence[str]) -> str:
    """Lines under a heading, the first of them when there are many."""
    rest = f"\n  and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
    return "".join(f"\n  {line}" for line in lines[:MOST_LINES]) + rest
