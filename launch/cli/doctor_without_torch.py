"""`isobit doctor` where torch or the compiled kernels cannot be loaded: the environment alone."""

from __future__ import annotations

from collections.abc import Sequence

from ...runtime.doctor.diagnosis import Diagnosis, decisive
from ...runtime.doctor.environment import environment_alone
from ...runtime.doctor.probes import import_probe
from .doctor_report import print_check, print_diagnosis
from .output import print_json


def report_if_nothing_runs(arguments: Sequence[str], as_json: bool) -> int | None:
    """The exit status after the report of what is broken; None when everything can be imported."""
    if "--help" in arguments:
        return None
    found = import_probe()
    if not any("error" in found.get(name, {}) for name in ("torch", "kernels")):
        return None
    result = environment_alone(degree=1)
    diagnosis = Diagnosis(case={}, checks=(result,), decisive=decisive([result]))
    if as_json:
        print_json(diagnosis.report())
    else:
        print_check(result)
        print_diagnosis(diagnosis)
    return 1
