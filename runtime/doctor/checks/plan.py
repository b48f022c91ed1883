"""Check 3: the plan is legal, padding is exact, and the shards gathered again are the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from isobit.findings import Confidence, Evidence, Finding, Verdict

from ....shard.checkpoint.checkpoint import open_checkpoint
from ....shard.verify.compare_weights import ORDER
from ....shard.verify.verify_load import compare, file_fingerprints
from ...settings.engine import run_dtype
from ..context import Context
from ..failures import layer_of, op_of
from ..planned_memory import planned_memory

NAME = "plan"
FEW_BYTES = 16
"""What one flipped bit, one number or one word can change; a loader that errs changes more."""
REPLICATED = ("norm", "bias")
LAST_WORD = "run isobit doctor MODEL -tp N once more: a loader errs every time, memory once"


def check_plan(context: Context) -> list[Finding]:
    """Load the ranks and compare what they hold with the file and with each other."""
    spec, plan = context.prepared()
    context.measure("layers", spec.layers)
    context.measure("rotary", spec.rotary.report())
    context.measure("memory", planned_memory(context.case, spec, plan))
    ranks = context.ranks()
    context.measure("plan", ranks.plan.report())
    audits = ranks.weights()
    found = software_findings(NAME, ranks.reports, audits)
    found += weight_findings(NAME, audits)
    found += table_findings(NAME, audits)
    if found:
        return found
    checkpoint = open_checkpoint(context.case.model)
    dtype = run_dtype(ranks.spec, context.case.engine.dtype)
    expected = file_fingerprints(checkpoint, ranks.spec, dtype)
    wrong = compare(expected, [audit["fingerprints"] for audit in audits])
    found = [_loaded_wrongly(fault.module, "differs from the file") for fault in wrong]
    for rank, audit in enumerate(audits):
        found += [_loaded_wrongly(name, "padding is not zero", rank) for name in audit["padding"]]
    context.measure("compared", len(expected))
    return found


def weight_findings(check: str, audits: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What ranks hold otherwise than the file: see WeightDifference."""
    holders: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for rank, audit in enumerate(audits):
        for difference in audit["differences"]:
            holders[difference["module"], difference["part"]].append((rank, difference))
    return [_weight(check, found, len(audits)) for found in holders.values()]


def _weight(check: str, found: list[tuple[int, dict[str, Any]]], degree: int) -> Finding:
    rank, first = found[0]
    where = ", ".join(f"rank {each}" for each, _ in found)
    verdict, confidence, reason = _cause(found, degree)
    place = f", KV head {first['kv_head']}" if first["kv_head"] is not None else ""
    spot = "" if first["row"] is None else f" at row {first['row']}, column {first['column']}"
    return Finding(
        check=check,
        severity="error",
        verdict=verdict,
        what=f"{first['module']}{place} on {where}: "
        + (
            "kernels read another part of the weight than the file has"
            if first["part"] == "extent"
            else f"{first['part']} not as in the file"
        ),
        site=first["module"].removeprefix("model."),
        layer=layer_of(first["module"]),
        op=op_of(first["module"]),
        rank=rank,
        atom=first["atom"],
        evidence=tuple(
            Evidence(
                what=f"{each['module']} on rank {holder}: {each['part']}{spot}",
                measured=each["held"],
                threshold=each["wanted"],
                source=f"the file; elements that differ: {each['count']}, bytes: {each['nbytes']}",
            )
            for holder, each in found
        ),
        confidence=confidence,
        reason=reason,
        remedy=LAST_WORD,
    )


def _cause(found: list[tuple[int, dict[str, Any]]], degree: int) -> tuple[Verdict, Confidence, str]:
    """One rank that strays from what all hold, or a shard that is wrong as such."""
    parts = {difference["part"] for _, difference in found}
    if parts == {"extent"}:
        return (
            "kernel-fault",
            "high",
            "every code and scale in memory is that of the file, and the kernel leaves "
            "some of them out",
        )
    alone = len(found) == 1 and degree > 1
    if "dtype" in parts and len(found) < degree:
        return "rank-divergence", "high", "the other ranks hold it in the dtype of the run"
    if alone and found[0][1]["nbytes"] <= FEW_BYTES and ORDER not in parts:
        few = f"{found[0][1]['nbytes']} wrong in the memory of one rank"
        return "rank-divergence", "high", f"bytes: {few}. No loader errs so; damaged memory does"
    if alone and parts & set(REPLICATED) and "none" not in found[0][1]["held"]:
        return "rank-divergence", "high", "every rank holds it, and only this one otherwise"
    return "shard-fault", "high", "what was read again from the file is not what the rank holds"


def software_findings(
    check: str, reports: Sequence[Mapping[str, Any]], audits: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """Versions and dtypes in which ranks differ."""
    held: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, (report, audit) in enumerate(zip(reports, audits, strict=True)):
        for name, value in {**report.get("software", {}), **audit["same"]}.items():
            held[name][value].append(rank)
    found = []
    for name, values in held.items():
        if len(values) == 1:
            continue
        usual = max(values, key=lambda value: (len(values[value]), 0 in values[value]))
        odd = next(ranks for value, ranks in values.items() if value != usual)
        text = "; ".join(
            f"{value} on {', '.join(f'rank {r}' for r in ranks)}" for value, ranks in values.items()
        )
        found.append(
            Finding(
                check=check,
                severity="error",
                verdict="rank-divergence",
                what=f"{name} differs between ranks: {text}",
                op=name,
                rank=odd[0],
                evidence=(Evidence(what=name, measured=text, threshold="equal on all ranks"),),
                reason="each rank says what it uses",
                remedy="give every rank the same installation, settings and config.json",
            )
        )
    return found


def table_findings(check: str, audits: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Tables of the forward pass that contradict the plan."""
    found = []
    for rank, audit in enumerate(audits):
        for table in audit["tables"]:
            verdict, op = _OF_TABLE[table["table"]]
            alone = sum(bool(other["tables"]) for other in audits) < len(audits)
            if verdict == "kernel-fault" and alone:
                verdict = "rank-divergence"
            found.append(
                Finding(
                    check=check,
                    severity="error",
                    verdict=verdict,
                    what=f"rank {rank}: {table['table']} is not what the plan says",
                    site=f"layers.0.{op}.out",
                    op=op,
                    layer=0,
                    rank=rank,
                    evidence=(
                        Evidence(
                            what=table["table"],
                            measured=table["held"],
                            threshold=table["wanted"],
                            source="the shard plan",
                        ),
                    ),
                    reason="the table was made again from the plan",
                    remedy="isobit plan MODEL -tp N shows which rank should hold what",
                )
            )
    return found


_OF_TABLE: dict[str, tuple[Verdict, str]] = {
    "head_to_kv": ("shard-fault", "self_attn.attn"),
    "merges": ("collective-fault", "self_attn.o_proj"),
    "cos": ("kernel-fault", "self_attn.rope"),
    "sin": ("kernel-fault", "self_attn.rope"),
}


def _loaded_wrongly(module: str, what: str, rank: int | None = None) -> Finding:
    on = "" if rank is None else f" on rank {rank}"
    return Finding(
        check=NAME,
        severity="error",
        verdict="shard-fault",
        what=f"{module}: {what}{on}",
        site=module.removeprefix("model."),
        layer=layer_of(module),
        op=op_of(module.split(" ")[0].removesuffix(".weight")),
        rank=rank,
        evidence=(
            Evidence(
                what=module, measured=what, threshold="the file", source="sums of 64-bit hashes"
            ),
        ),
        reason="every element of every shard was hashed with its place in the whole weight",
        remedy="isobit generate MODEL -tp N --verify-load says the same; report it",
    )
