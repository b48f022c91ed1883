"""Check 4: the collectives, with whole numbers, in processes of their own and in the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isobit.findings import Evidence, Finding

from ...engine.engine import OUTSIDE_CONTRACT
from ..canary import canary
from ..context import Context
from ..failures import layer_of, op_of
from ..findings import skipped

NAME = "collectives"
BIAS = "the bias"


def check_collectives(context: Context) -> list[Finding]:
    """Start processes that do nothing else, then ask the ranks themselves."""
    case = context.case
    if case.degree == 1:
        return [skipped(NAME, "one rank has nobody to talk to")]
    found: list[Finding] = []
    if case.engine.all_reduce == "library":
        found.append(
            Finding(
                check=NAME, severity="warning", what=f"outside the contract: {OUTSIDE_CONTRACT}"
            )
        )
    if not case.quick:
        modes, failed = canary(case.degree, case.engine.collective_timeout_s)
        context.measure("canary", modes)
        found += failed
    ranks = context.ranks()
    chosen = ranks.reports[0]["all_reduce"]
    context.measure("all_reduce", chosen)
    if case.engine.all_reduce == "auto" and chosen["name"] == "gather":
        found.append(
            Finding(
                check=NAME,
                severity="warning",
                what=f"custom collectives are off, ranks {chosen['name']}: {chosen['reason']}",
            )
        )
    answers = ranks.drilled()
    context.measure("drill", answers)
    return found + drill_findings(answers)


def drill_findings(answers: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The first sum that went wrong on each rank, as one finding where all went wrong alike."""
    wrong = {rank: answer["wrong"] for rank, answer in enumerate(answers) if answer["wrong"]}
    if not wrong:
        return []
    alike = len(wrong) == len(answers) and len({each[0]["looks"] for each in wrong.values()}) == 1
    if alike:
        return [_finding(None, next(iter(wrong.values())))]
    return [_finding(rank, each) for rank, each in wrong.items()]


def _finding(rank: int | None, wrong: list[dict[str, Any]]) -> Finding:
    first = wrong[0]
    site, looks = first["site"], first["looks"]
    bias = looks.endswith(BIAS)
    if looks.startswith("without rank"):
        rank = int(looks.split()[-1])
    on = "on every rank" if rank is None else f"on rank {rank}"
    more = f", and at {len(wrong) - 1} more sites" if len(wrong) > 1 else ""
    described = {
        "untouched": "part of the result was never written",
        "stale": "the result is that of the call before",
        "wrong": "the result is wrong",
    }.get(looks, f"the result is {looks}")
    if bias:
        described = f"the sum of the ranks' parts holds {looks} of the product as well"
    return Finding(
        check=NAME,
        severity="error",
        verdict="shard-fault" if bias else "collective-fault",
        what=f"{site} {on}: {described}{more}",
        site=site,
        layer=layer_of(site),
        op=op_of(site),
        rank=rank,
        evidence=(
            Evidence(
                what=f"element {first['first']} of a sum of whole numbers; {first['wrong']} of "
                f"{first['of']} elements are wrong",
                measured=first["got"],
                threshold=first["wanted"],
                source="whole numbers below 2^24 add up exactly in fp32",
            ),
        ),
        reason="a bias belongs behind the sum, once" if bias else "there is one right answer",
        remedy="isobit generate MODEL -tp N --all-reduce gather -p TEXT",
    )
