"""What is wrong with a cluster, from the reports of its hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from .facts import Report, names_of
from .finding import Gravity, HostFinding
from .judge_machine import clock, graphics, links, reach, room
from .judge_model import model
from .judge_software import broken, known_trouble, silent, versions

ORDER = get_args(Gravity)[::-1]


def judge(reports: Sequence[Report], here: str, hosts: int | None = None) -> list[HostFinding]:
    """Findings, faults first.

    `here` is the driver's version of isobit, `hosts` how many hosts there should be.
    """
    named = dict(zip(names_of(reports), reports, strict=True))
    found = missing(list(named), hosts) + versions(named, here)
    for check in (silent, broken, reach, model, graphics, clock, links, room, known_trouble):
        found += check(named)
    return sorted(found, key=lambda finding: ORDER.index(finding.gravity))


def missing(names: Sequence[str], hosts: int | None) -> list[HostFinding]:
    """A host that never joined leaves no report."""
    if hosts is None or len(names) >= hosts:
        return []
    return [
        HostFinding(
            gravity="fault",
            what=f"{len(names)} of {hosts} hosts have joined: {', '.join(names)}",
            hosts=(),
            way_out="on the head: less /tmp/ray/session_latest/logs/monitor.*; on the missing "
            "host, ray start --address=HEAD:6379 says what is wrong",
        )
    ]
