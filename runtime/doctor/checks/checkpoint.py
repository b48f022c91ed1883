"""Check 2: everything that `isobit inspect` knows, as verdicts."""

from __future__ import annotations

from typing import Any

from isobit.findings import Evidence, Finding, Verdict, errors_of

from ....shard.checkpoint.checkpoint import open_checkpoint
from ....shard.contents.stored_head import with_stored_head
from ....shard.inspect import Finding as Inspected
from ....shard.inspect import inspect_folder
from ....shard.inspect.alignment import MOST_ALIGNED, alignments
from ....shard.inspect.quantized import QuantizedModule
from ....shard.model.spec import read_spec
from ..context import Context
from ..failures import layer_of, op_of, verdict_of_code

NAME = "checkpoint"
MOST_SHOWN = 400
USUAL = -0.7
RESTORE = "compare the files with where they came from: isobit inspect MODEL --sha256"


def check_checkpoint(context: Context) -> list[Finding]:
    """Read every tensor once. Raises InputError when there is nothing to read."""
    report = inspect_folder(context.case.model)
    context.measure("files", report.files)
    context.measure("format", report.format)
    found = [_finding(each) for each in report.findings]
    return found if errors_of(found) else found + _misaligned(context)


def _misaligned(context: Context) -> list[Finding]:
    """Weights whose scales do not belong to the codes beside them."""
    folder = context.case.model
    found, stray = [], []
    checkpoint = open_checkpoint(folder)
    for module, seen in alignments(checkpoint, with_stored_head(read_spec(folder), checkpoint)):
        if seen.columns is not None:
            what = "its codes fit the scales in another order of columns: that of AWQ's nibbles"
            found.append(
                _stray(module, "format-mislabelled", what, seen.own, seen.columns, RESTORE)
            )
        elif seen.foreign:
            group, other, own, best = seen.foreign[0]
            groups = ", ".join(str(each[0]) for each in seen.foreign[:8])
            what = f"the codes of group {group} fit the scales of group {other} (groups {groups})"
            found.append(_stray(module, "checkpoint-damaged", what, own, best, RESTORE))
        elif seen.own > MOST_ALIGNED:
            stray.append((module, seen.own))
    for module, own in stray:
        if module.scheme.act_order:
            what = (
                "the config says act-order, and the scales fit no group as g_idx has them: it is "
                "missing, or not that of these weights"
            )
            found.append(_stray(module, "format-mislabelled", what, own, USUAL, RESTORE))
    if stray and not found:
        names = ", ".join(module.name for module, _ in stray[:4])
        what = f"scales that have nothing to do with the codes beside them: {names}"
        found.append(Finding(check=NAME, severity="warning", what=what, remedy=RESTORE))
    context.measure("misaligned", len(found))
    return found


def _stray(
    module: QuantizedModule, verdict: Verdict, what: str, own: float, best: float, remedy: str
) -> Finding:
    return Finding(
        check=NAME,
        severity="error",
        verdict=verdict,
        what=f"{module.name}: {what}",
        site=module.name.removeprefix("model."),
        layer=layer_of(module.name),
        op=op_of(module.name),
        evidence=(
            Evidence(
                what="correlation, over output rows, of a group's scale and its codes' spread",
                measured=round(own, 3),
                threshold=round(best, 3),
                source="the step of a group follows from its extremes; healthy files have -0.4 "
                "to -0.75",
            ),
        ),
        confidence="medium",
        reason="a correlation over many rows: strong evidence, and no proof",
        remedy=remedy,
    )


def _finding(found: Inspected) -> Finding:
    tensor = _first_tensor(found)
    place = {"layer": layer_of(tensor), "op": op_of(_module(tensor))} if tensor else {}
    what = f"{found.code} {found.where}: {found.what.splitlines()[0]}"
    evidence = (
        Evidence(
            what=found.where,
            measured=found.what[:MOST_SHOWN],
            source=f"isobit inspect, {found.code}",
        ),
    )
    if found.severity != "error":
        return Finding(
            check=NAME,
            severity="warning" if found.severity == "warning" else "note",
            what=what,
            evidence=evidence,
            remedy=found.remedy,
            **place,
        )
    return Finding(
        check=NAME,
        severity="error",
        verdict=_verdict(found),
        what=what,
        evidence=evidence,
        reason="the files alone show it",
        remedy=found.remedy,
        site=tensor,
        **place,
    )


def _verdict(found: Inspected) -> Verdict:
    if found.kind == "not-supported":
        return "not-supported"
    misused = found.kind == "misused"
    unnamed: Verdict = "config-mismatch" if misused else "checkpoint-damaged"
    return verdict_of_code(found.code, misused=misused) or unnamed


def _first_tensor(found: Inspected) -> str | None:
    """The first tensor that a finding names, in its place or its numbers."""
    if found.where.startswith("model.layers.") and "*" not in found.where:
        return found.where.split()[0]
    return next(iter(_names(found.numbers)), None)


def _names(value: Any) -> list[str]:
    """Names of tensors and modules in the numbers of a finding, in their order."""
    if isinstance(value, str):
        return [value] if value.startswith(("model.", "lm_head")) else []
    if isinstance(value, dict):
        return [name for item in value.items() for part in item for name in _names(part)]
    if isinstance(value, list | tuple):
        return [name for part in value for name in _names(part)]
    return []


def _module(tensor: str) -> str:
    """model.layers.3.mlp.down_proj.scales -> model.layers.3.mlp.down_proj."""
    head, _, last = tensor.rpartition(".")
    return head if last and not last.endswith(("_proj", "norm")) else tensor
