"""`isobit doctor` where torch or the compiled kernels cannot be loaded: the environment alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ....runtime.doctor.checks.environment import environment_alone
from ....runtime.doctor.diagnosis import Diagnosis, decisive
from ....runtime.doctor.probes import import_probe
from .report import print_check, show_diagnosis


def report_if_nothing_runs(arguments: Sequence[str], as_json: bool) -> int | None:
    """The exit status after the report of what is broken; None when everything can be imported."""
    if "--help" in arguments:
        return None
    found = import_probe()
    if not any("error" in found.get(name, {}) for name in ("torch", "kernels")):
        return None
    result = environment_alone(degree=1)
    diagnosis = Diagnosis(case={}, checks=(result,), decisive=decisive([result]))
    if not as_json:
        print_check(result)
    return show_diagnosis(diagnosis, _page(arguments), as_json)


def _page(arguments: Sequence[str]) -> Path | None:
    """The value of --html: typer, which would know, comes with what cannot be imported."""
    for number, argument in enumerate(arguments):
        name, has_value, value = argument.partition("=")
        if name == "--html":
            following = arguments[number + 1 : number + 2]
            return Path(value) if has_value else Path(*following) if following else None
    return None
