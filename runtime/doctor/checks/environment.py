"""Check 1: the machine and what is installed on it. The standard library is all this needs."""

from __future__ import annotations

import time
from typing import Any

from isobit.findings import Evidence, Finding

from ..findings import CheckResult
from ..known_bad import known_bad
from ..probes import import_probe, machine

NAME = "environment"
SHARED_BYTES_PER_RANK = 4 << 20
"""Two slots of 512 KiB and what belongs to them, several times over."""


def check_environment(degree: int) -> tuple[list[Finding], dict[str, Any]]:
    """What keeps isobit from running is a fault; what has caused trouble elsewhere a warning.

    Returns the findings, and the machine as it was measured.
    """
    found: list[Finding] = []
    seen = machine()
    seen |= import_probe()
    if "error" in seen["torch"]:
        error = seen["torch"]["error"]
        remedy = "install torch again: pip install --force-reinstall torch"
        found.append(_fault(f"torch cannot be imported: {error}", "torch", error, remedy))
    elif "error" in seen["kernels"]:
        error = seen["kernels"]["error"]
        what = f"the compiled kernels cannot be loaded: {error}"
        remedy = "install isobit again: pip install --force-reinstall --no-deps isobit"
        found.append(_fault(what, "isobit.kernels", error, remedy))
    found += _notes(seen, degree)
    found += [
        Finding(
            check=NAME,
            severity="warning",
            what=entry["what"],
            evidence=(Evidence(what="known bad", measured=entry["what"], source=entry["source"]),),
            remedy=entry["remedy"],
        )
        for entry in known_bad(seen)
    ]
    return found, seen


def environment_alone(degree: int) -> CheckResult:
    """The check on its own, for where nothing else can run."""
    started = time.perf_counter()
    findings, measured = check_environment(degree)
    return CheckResult(
        name=NAME,
        seconds=time.perf_counter() - started,
        findings=tuple(findings),
        measured=measured,
    )


def _notes(seen: dict[str, Any], degree: int) -> list[Finding]:
    found = []
    shared, needed = seen["shared_memory_bytes"], degree * SHARED_BYTES_PER_RANK
    if shared is not None and shared < needed and degree > 1:
        found.append(
            Finding(
                check=NAME,
                severity="warning",
                what=f"shared memory: {shared / 2**20:.0f} MiB are free, {degree} ranks may need "
                f"{needed / 2**20:.0f}",
                evidence=(
                    Evidence(
                        what="free bytes of /dev/shm",
                        measured=shared,
                        threshold=needed,
                        source="4 MiB a rank for the custom collectives",
                    ),
                ),
                remedy="docker run --shm-size=1g, or --disable-custom-all-reduce",
            )
        )
    if fault := seen["variables"].get("ISOBIT_FAULT"):
        found.append(
            Finding(
                check=NAME,
                severity="warning",
                what=f"ISOBIT_FAULT={fault}: faults are injected on purpose",
                remedy="unset ISOBIT_FAULT",
            )
        )
    return found


def _fault(what: str, op: str, measured: str, remedy: str) -> Finding:
    return Finding(
        check=NAME,
        severity="error",
        verdict="environment",
        what=what,
        op=op,
        evidence=(
            Evidence(
                what=f"importing {op} in a process of its own", measured=measured, threshold="works"
            ),
        ),
        reason="nothing can run without it",
        remedy=remedy,
    )
