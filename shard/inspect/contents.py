"""The tensors that headers list against those that config.json implies: every contradiction."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.findings import Finding

from ..checkpoint.checkpoint import Scan
from ..contents.contradictions import contradictions, same_shape
from ..contents.edited_sizes import edited_sizes
from ..contents.expected_tensors import expected_tensors
from ..contents.leftovers import sort_leftovers
from ..formats.expected import ANY, Expected
from ..load.validate import lost_biases, unknown_tensors
from ..model.spec import ModelSpec
from ..names import places, plural, spread
from .quantized import QuantizedModule, quantized_modules


@dataclass(frozen=True, kw_only=True)
class Contents:
    """`spec` has the sizes that the tensors say. `fitting` are expected tensors, shape and all."""

    spec: ModelSpec
    modules: list[QuantizedModule]
    fitting: set[str]
    missing: list[str]
    unexpected: list[str]
    findings: list[Finding]


def check_contents(scan: Scan, spec: ModelSpec) -> Contents:
    """Compare shapes, dtypes and names; needs no data."""
    checkpoint = scan.checkpoint
    edited, true = edited_sizes(checkpoint, spec, scan.unread)
    modules = quantized_modules(true)
    expected = expected_tensors(true)
    companions: dict[str, bool] = {}
    for module in modules:
        companions |= module.companions()
    fitting = {
        name
        for name, tensor in expected.items()
        if (entry := checkpoint.entries.get(name)) is not None
        and same_shape(tensor.shape, entry.shape)
        and entry.dtype in tensor.dtypes
    }
    parts = {n: Expected(shape=(ANY,), dtypes=(), required=r) for n, r in companions.items()}
    needed = expected | {n: part for n, part in parts.items() if n not in checkpoint.entries}
    found = contradictions(checkpoint.entries, true, needed, scan.unread)
    findings = [
        Finding(
            severity="error",
            kind=each.kind,
            code=each.code,
            where=each.where,
            what=each.what,
            numbers=each.numbers,
            remedy=each.remedy,
        )
        for each in (*edited, *found)
    ]
    required = expected.keys() | companions.keys()
    missing = [
        name
        for name, tensor in needed.items()
        if tensor.required and name not in checkpoint.entries and name not in scan.unread
    ]
    unexpected = [name for name in checkpoint.entries if name not in required]
    return Contents(
        spec=true,
        modules=modules,
        fitting=fitting,
        missing=missing,
        unexpected=unexpected,
        findings=findings,
    )


def leftover_findings(scan: Scan, spec: ModelSpec, names: list[str]) -> list[Finding]:
    """Tensors that no product needs: explained by their bytes as a note, others as a warning."""
    left = sort_leftovers(scan.checkpoint, spec, names, scan.beyond)
    findings = []
    if left.biases:
        error = lost_biases(scan.checkpoint, spec, left)
        findings.append(
            Finding(
                severity="error",
                code=error.code,
                where=places(left.biases),
                what=error.message.partition(": ")[2],
                numbers={"tensors": left.biases},
                remedy="a bias that is lost changes every answer: correct config.json",
            )
        )
    if left.unknown:
        findings.append(
            Finding(
                severity="warning",
                code="W-CKPT-EXTRA",
                where=places(list(left.unknown)),
                what=unknown_tensors(left),
                numbers={"tensors": list(left.unknown), "oddities": left.unknown},
                remedy="if the model needs them, config.json names the wrong architecture or "
                "quantization",
            )
        )
    if left.explained:
        findings.append(
            Finding(
                severity="note",
                code="N-CKPT-EXTRA",
                where=places(left.explained),
                what=f"{plural(len(left.explained), 'tensor')} that no engine needs (tables that "
                "are computed, zero biases, a copy of the tied embedding, unused parts)"
                + spread(left.explained),
                numbers={"tensors": left.explained},
                remedy="nothing to do",
            )
        )
    return findings
