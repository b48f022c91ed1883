"""What is wrong with a cluster, from the reports of its hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isobit.findings import Finding, worst_first

from ....runtime.model_files.manifest import Manifest
from .facts import Report
from .judge_machine import clock, graphics, links, reach, room
from .judge_model import model
from .judge_software import broken, known_trouble, silent, versions


def judge(
    reports: Sequence[Report],
    driver: Mapping[str, str],
    wanted: Manifest | None = None,
    hosts: int | None = None,
) -> list[Finding]:
    """Findings, faults first.

    `driver` holds the driver's versions by the names of HostReport, `wanted` its files of the
    model, and `hosts` how many hosts there should be.
    """
    found = missing(reports, hosts) + silent(reports, driver) + versions(reports, driver)
    if wanted is not None:
        found += model(reports, wanted)
    for check in (broken, reach, graphics, clock, links, room, known_trouble):
        found += check(reports)
    return worst_first(found)


def missing(reports: Sequence[Report], hosts: int | None) -> list[Finding]:
    """A host that never joined leaves no report."""
    alive = [report["host"] for report in reports if report["state"] == "alive"]
    if hosts is None or len(alive) >= hosts:
        return []
    return [
        Finding(
            severity="error",
            what=f"{len(alive)} of {hosts} hosts are there: {', '.join(alive)}",
            remedy="on the head: less /tmp/ray/session_latest/logs/monitor.*; on the missing "
            "host, ray start --address=HEAD:6379 says what is wrong",
        )
    ]
