"""Check 7: the same bits at degree 1 as at the case's degree, or the first site that differs.

Sites are recorded in the order in which they are computed. So everything that the first differing
site was computed from is equal at both degrees, and what computed it is to blame.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from isobit.errors import RankFault
from isobit.findings import Evidence, Finding, Verdict

from ...trace.tracer import Difference, first_difference
from ..context import Context
from ..failures import layer_of, op_of
from ..findings import skipped
from ..ranks import RanksExamined
from .kernels import operation_findings
from .plan import software_findings, table_findings, weight_findings

NAME = "degrees"
GATHERED = ("embed_tokens.out", "logits")
SUMMED = ("o_proj.out", "down_proj.out")
ATTENDED = "o_proj.in"
OUTSIDE = "outside the contract: the library adds in an order of its own, so bits need not agree"


def check_degrees(context: Context) -> list[Finding]:
    """Compare the traces of the case's degree with each other and with those of degree 1."""
    degree = context.case.degree
    if degree == 1:
        return [skipped(NAME, "tp 1 has nothing to be compared with")]
    ranks = context.ranks()
    traced = ranks.run().traces
    audits = ranks.weights_after()
    wide = software_findings(NAME, ranks.reports, audits) + table_findings(NAME, audits)
    held = weight_findings(NAME, audits)
    alone = context.ranks(1)
    # Degree 1 serves as the measure only where nothing is wrong with it.
    weights = weight_findings(NAME, alone.weights())
    reference = alone.run().traces
    own = operation_findings(NAME, alone.operations()) + weights
    if own:
        return [_at_degree_one(finding) for finding in own]
    difference = first_difference(reference, traced, (1, degree))
    context.measure("steps", len(traced))
    context.measure("sites", len(reference[0][0]) if reference else 0)
    if difference is None:
        return []
    context.measure("first_difference", dataclasses.asdict(difference))
    if context.case.engine.all_reduce == "library" and difference.site.endswith(SUMMED):
        return [Finding(check=NAME, severity="warning", what=OUTSIDE, site=difference.site)]
    evidence = _evidence(difference)
    if difference.site.endswith(SUMMED) and not context.case.quick:
        evidence += _gathered(context, ranks, reference, difference)
    known = held + operation_findings(NAME, ranks.operations())
    known += [f for f in wide if f.rank == difference.rank]
    return [_finding(difference, evidence, known)]


def _finding(
    difference: Difference, evidence: tuple[Evidence, ...], known: list[Finding]
) -> Finding:
    site = difference.site
    verdict, reason = _cause(site)
    op = _op(site)
    # Weights and operations themselves tell more than the trace can.
    place = layer_of(site)
    same = [f for f in known if f.layer == place and f.op in (op, f"{op}.bias")]
    same += [f for f in known if f.layer is None]
    if same:
        verdict, reason = same[0].verdict, f"{same[0].what}; everything before agrees"
        evidence += same[0].evidence
    kind, _, number = difference.part.partition(" ")
    return Finding(
        check=NAME,
        severity="error",
        verdict=verdict,
        what=f"degrees {difference.degrees[0]} and {difference.degrees[1]} part at {site} "
        f"({difference.part}), rank {difference.rank}",
        site=site,
        layer=place,
        op=op,
        rank=difference.rank,
        atom=int(number) if kind == "atom" else None,
        evidence=evidence,
        confidence="high" if same else "medium",
        reason=reason,
        remedy=f"isobit verify MODEL -tp 1,{difference.degrees[1]} shows the same place",
    )


def _op(site: str) -> str | None:
    """The operation whose result a site holds."""
    made = {"o_proj.in": "self_attn.attn", "down_proj.in": "mlp.silu_mul"}
    return next((op for end, op in made.items() if site.endswith(end)), op_of(site))


def _cause(site: str) -> tuple[Verdict, str]:
    if site.endswith(SUMMED):
        return "collective-fault", "the parts of the sum agree, the sum does not"
    if site.endswith(ATTENDED):
        return (
            "rank-divergence",
            "what it does with its inputs is right, so it read other keys and values: those of "
            "this rank's KV cache",
        )
    if site in GATHERED:
        return "collective-fault", "the pieces that ranks gathered agree, the whole does not"
    return "kernel-fault", "its inputs and weights agree, its result does not"


def _evidence(difference: Difference) -> tuple[Evidence, ...]:
    return (
        Evidence(
            what=f"first site whose bits differ, in step {difference.step + 1}",
            measured=f"{difference.site} ({difference.part}) on rank {difference.rank}",
            threshold="equal bits",
            source="the numeric contract: the same bits at every tensor-parallel size",
        ),
    )


def _gathered(
    context: Context, ranks: RanksExamined, reference: Any, difference: Difference
) -> tuple[Evidence, ...]:
    """Whether the other way to the same sum gives the right one."""
    if ranks.reports[0]["all_reduce"]["name"] not in ("custom", "hierarchical"):
        return ()
    try:
        traced = context.ranks(all_reduce="gather").run().traces
    except RankFault as fault:
        measured = f"{fault.code} {fault.message}"
    else:
        found = first_difference(reference, traced, difference.degrees)
        measured = "the bits of tp 1" if found is None else f"differs at {found.site}"
    return (
        Evidence(
            what="the same run with --all-reduce gather",
            measured=measured,
            threshold="the bits of tp 1",
            source="gathering and summing locally is the custom collectives' oracle",
        ),
    )


def _at_degree_one(finding: Finding) -> Finding:
    what = f"at tp 1, the measure of all others: {finding.what}"
    return dataclasses.replace(finding, what=what)
