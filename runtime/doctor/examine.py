"""Running the checks one after another; what goes wrong within one is a finding of its own."""

from __future__ import annotations

import dataclasses
import shlex
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isobit.errors import IsobitError
from isobit.findings import Evidence, Finding, Verdict

from .case import Case
from .context import Context
from .diagnosis import decisive, is_certain
from .failures import RanksLost, finding_of_error
from .findings import CheckResult, skipped

OnCheck = Callable[[str, CheckResult | None], None]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check: its name, what it costs in words, the verdicts it can come to, and its function."""

    name: str
    cost: str
    finds: tuple[Verdict, ...]
    run: Callable[[Context], list[Finding]]


def examine(
    context: Context, checks: Sequence[Check], on_check: OnCheck = lambda name, result: None
) -> tuple[CheckResult, ...]:
    """Run checks in their order until one is certain of a cause that no later one can precede.

    `on_check(name, result)` is called before each check with None, and after it with its result.
    """
    results: list[CheckResult] = []
    for number, check in enumerate(checks):
        on_check(check.name, None)
        found = decisive(results)
        to_come: list[Verdict] = [verdict for later in checks[number:] for verdict in later.finds]
        if found is not None and is_certain(found, to_come):
            why = f"not run: {found.verdict} is certain, and what follows from it would be seen"
            result = CheckResult(name=check.name, seconds=0, findings=(skipped(check.name, why),))
        else:
            result = _run(context, check)
        results.append(result)
        on_check(check.name, result)
    return tuple(results)


def _run(context: Context, check: Check) -> CheckResult:
    started = time.perf_counter()
    try:
        findings = check.run(context)
    except RanksLost as lost:
        findings = [skipped(check.name, f"not run: {lost}")]
    except IsobitError as error:
        findings = [finding_of_error(check.name, error)]
    except Exception as error:  # noqa: BLE001
        # The report has to come out whatever happens; the traceback is part of it.
        findings = [_broken(check.name, error)]
    return CheckResult(
        name=check.name,
        seconds=time.perf_counter() - started,
        findings=tuple(_for_this_case(finding, context.case) for finding in findings),
        measured=context.take_measured(),
    )


def _for_this_case(finding: Finding, case: Case) -> Finding:
    """With a next step that can be pasted: MODEL and N are this case's."""
    step = finding.remedy.replace("MODEL", shlex.quote(str(case.model)))
    for place in ("-tp N", "-tp 1,N"):
        step = step.replace(place, place.replace("N", str(case.degree)))
    return dataclasses.replace(finding, remedy=step)


def _broken(name: str, error: Exception) -> Finding:
    return Finding(
        check=name,
        severity="error",
        verdict="environment",
        what=f"the check itself failed: {type(error).__name__}: {error}",
        evidence=(Evidence(what="traceback", measured=traceback.format_exc()),),
        confidence="low",
        reason="a check that fails says nothing about the model: isobit or the installation is "
        "at fault",
        remedy="report this with the traceback (isobit doctor --json)",
    )
