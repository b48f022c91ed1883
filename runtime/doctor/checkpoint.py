"""Check 2: everything that `isobit inspect` knows, as verdicts."""

from __future__ import annotations

from typing import Any

from ...shard.inspect import Finding as Inspected
from ...shard.inspect import inspect_folder
from .context import Context
from .failures import layer_of, op_of, verdict_of_code
from .findings import Evidence, Finding

NAME = "checkpoint"
MOST_SHOWN = 400


def check_checkpoint(context: Context) -> list[Finding]:
    """Read every tensor once. Raises InputError when there is nothing to read."""
    report = inspect_folder(context.case.model)
    context.measure("files", report.files)
    context.measure("format", report.format)
    return [_finding(found) for found in report.findings]


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
            status="warning" if found.severity == "warning" else "note",
            what=what,
            evidence=evidence,
            next_step=found.way_out,
            **place,
        )
    return Finding(
        check=NAME,
        status="fault",
        verdict=verdict_of_code(found.code) or "checkpoint-damaged",
        what=what,
        evidence=evidence,
        reason="the files alone show it",
        next_step=found.way_out,
        site=tensor,
        **place,
    )


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
