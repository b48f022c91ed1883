"""Examining a model the quick way, and the small models to examine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isobit.runtime.doctor.all_checks import CHECKS
from isobit.runtime.doctor.case import Case
from isobit.runtime.doctor.context import Context
from isobit.runtime.doctor.diagnosis import Diagnosis, decisive
from isobit.runtime.doctor.examine import examine
from isobit.runtime.settings.engine import EngineSettings
from isobit.runtime.worker.forked_launcher import ForkedLauncher
from isobit.shard.plan.plan import PlanSettings

DEGREES = [2, pytest.param(4, marks=pytest.mark.long)]

PROMPTS = ((5, 6, 7, 8, 9, 10, 11), tuple(range(20, 72)))
BUT_ENVIRONMENT = tuple(check for check in CHECKS if check.name != "environment")


def diagnose(model: Path, degree: int, timeout_s: float = 10.0, **plan: Any) -> Diagnosis:
    """The diagnosis of `isobit doctor --quick`, without a look at the machine."""
    all_reduce = plan.pop("all_reduce", "auto")
    engine = EngineSettings(
        plan=PlanSettings(degree=degree, **plan),
        threads=1,
        all_reduce=all_reduce,
        collective_timeout_s=timeout_s,
    )
    case = Case(model=model, engine=engine, prompts=PROMPTS, max_tokens=3, quick=True)
    with Context(case, ForkedLauncher) as context:
        results = examine(context, BUT_ENVIRONMENT)
    return Diagnosis(case=case.report(), checks=results, decisive=decisive(results))
