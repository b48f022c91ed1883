"""Reading the reports of hosts, as `visit.visit` makes them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..ray.versions import SOURCE

Report = Mapping[str, Any]
ALIKE = {"isobit": "isobit", SOURCE: SOURCE, "ray": "Ray", "torch": "torch", "python": "Python"}
"""What every host must have as the driver has it, by the names of `versions.HostReport`."""


def facts(report: Report) -> Mapping[str, Any]:
    """What a host said of itself; empty when it did not answer."""
    return report.get("facts", {})


def usual(values: Sequence[Any]) -> Any:
    """The value that most have; of several such the first, which is the head's if it is one."""
    return Counter(values).most_common(1)[0][0]


def instructions(report: Report) -> str | None:
    """The instruction set of the CPU kernels, where they can be loaded."""
    kernels = facts(report).get("kernels") or {}
    return f"{kernels['isa']}, vnni {kernels['vnni']}" if "isa" in kernels else None


def cards(report: Report) -> list[str]:
    """Names of the GPUs that the NVIDIA driver lists."""
    return [gpu["name"] for gpu in facts(report).get("gpus", [])]


def devices(report: Report) -> list[Mapping[str, Any]] | None:
    """The GPUs that torch sees, None where torch cannot be asked."""
    return facts(report).get("torch", {}).get("devices")


def ways_without_access(report: Report) -> list[tuple[int, int]]:
    """Pairs of GPUs of which the first cannot read the memory of the second."""
    seen = devices(report) or []
    return [
        (index, other)
        for index, device in enumerate(seen)
        for other in range(len(seen))
        if other != index and other not in device["peers"]
    ]


def files_digest(model: Mapping[str, Any]) -> str:
    """Eight hex digits over names and contents of a manifest's files, as far as ranks read them."""
    lines = (f"{f['quick']} {f['name']}\n" for f in model["files"] if f["kind"] != "tokenizer")
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:8]
