"""Reading one host's report: names, versions, cards, and the value that most hosts have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
"""One host, as `visit.visit` reports it."""


def names_of(reports: Sequence[Report]) -> list[str]:
    """A short name per host that no other has: host name, else address, else with the node id."""
    found = []
    for report in reports:
        candidates = (
            lambda r: r.get("facts", {}).get("hostname", r["address"]),
            lambda r: r["address"],
            lambda r: f"{r['address']}/{r['node'][:6]}",
        )
        found.append(
            next(
                name(report)
                for name in candidates
                if sum(name(other) == name(report) for other in reports) == 1
            )
        )
    return found


def usual(values: Sequence[Any]) -> Any:
    """The value that most have; of several such the first, which is the head's if it is one."""
    return Counter(values).most_common(1)[0][0]


def package(report: Report, name: str) -> str | None:
    """The version of a package, which a host without facts may have told as well."""
    if "facts" not in report:
        return report.get(name)
    return report["facts"]["packages"].get(name)


def instructions(report: Report) -> str | None:
    """The instruction set of the CPU kernels, where they can be loaded."""
    kernels = report.get("facts", {}).get("kernels") or {}
    return f"{kernels['isa']}, vnni {kernels['vnni']}" if "isa" in kernels else None


def cards(report: Report) -> list[str]:
    """Names of the GPUs that the driver lists."""
    return [gpu["name"] for gpu in report.get("facts", {}).get("gpus", [])]


def peers_of_cards(report: Report) -> list[tuple[int, int]]:
    """Pairs of GPUs of which the first cannot read the memory of the second."""
    devices = report.get("facts", {}).get("torch", {}).get("devices", [])
    return [
        (index, other)
        for index, device in enumerate(devices)
        for other in range(len(devices))
        if other != index and other not in device["peers"]
    ]
