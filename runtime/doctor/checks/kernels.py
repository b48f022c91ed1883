"""Check 5: each operation on the real weights of each rank against the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

from isobit.findings import Evidence, Finding

from ..context import Context
from ..failures import layer_of, op_of
from .plan import weight_findings

NAME = "kernels"
TREE = "tree"
FED_WRONGLY = "this rank's collectives fail: what its operations are given may be of any size"


def check_kernels(context: Context) -> list[Finding]:
    """Run the prompts with every operation watched, then look at the weights once more."""
    ranks = context.ranks()
    batch = ranks.run()
    context.measure("kernels", [report["kernels"] for report in ranks.reports])
    context.measure("steps", len(batch.hidden_digests))
    found = [
        dataclasses.replace(each, confidence="low", reason=FED_WRONGLY)
        if each.rank in ranks.received_wrongly()
        else each
        for each in operation_findings(NAME, ranks.operations())
    ]
    if wrong := [c.error for c in batch.completions if c.error]:
        found.append(_not_finite(wrong[0]))
    return found + weight_findings(NAME, ranks.weights_after())


def _not_finite(error: str) -> Finding:
    return Finding(
        check=NAME,
        severity="error",
        verdict="numeric-overflow",
        what=error,
        site="logits",
        op="logits",
        evidence=(Evidence(what="logits", measured=error, threshold="finite"),),
        confidence="low",
        reason="only the end of the pass is looked at here, not where it began",
        remedy="isobit generate MODEL -tp N --dtype bfloat16 -p TEXT",
    )


def operation_findings(check: str, answers: list[dict[str, Any]]) -> list[Finding]:
    """What was wrong with operations: the first of each rank, in the order in which they ran."""
    return [
        _finding(check, rank, answer["findings"][0], len(answer["findings"]))
        for rank, answer in enumerate(answers)
        if answer["findings"]
    ]


def _finding(check: str, rank: int, wrong: dict[str, Any], count: int) -> Finding:
    op, tree = wrong["op"], wrong["kind"] == TREE
    more = f", and {count - 1} more operations" if count > 1 else ""
    if tree:
        what = f"{op} on rank {rank}: its atoms are not added along the tree{more}"
        reason = "the partial sums of the atoms are right, their sum is another"
    else:
        what = f"{op} on rank {rank}: the kernel's result is not that of the reference{more}"
        reason = "the same inputs and the same weights give another result in plain torch"
    return Finding(
        check=check,
        severity="error",
        verdict="collective-fault" if tree else "kernel-fault",
        what=what,
        site=op if op.endswith(".out") else f"{op}.out",
        layer=layer_of(op),
        op=op_of(op),
        rank=rank,
        atom=wrong["atom"],
        evidence=(
            Evidence(
                what=f"{op} ({wrong['kind']}), first output that is off",
                measured=wrong["found"],
                threshold=f"{wrong['wanted']:.6g} ± {wrong['limit']:.3g}",
                source="the reference in float64; 64 standard deviations of fp32 rounding",
            ),
        ),
        reason=reason,
        remedy="make test (tests/kernels) on this machine, and report which test fails",
    )
