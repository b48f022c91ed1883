"""g_idx, the group of each input feature: its state, and members of a fused product that differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from isobit.findings import Finding

from ..formats.scheme import WeightScheme
from ..model.spec import ModelSpec
from ..names import layer_of, listed, places, plural, spread
from .quantized import QuantizedModule

State = Literal["absent", "unset", "sequential", "shuffled", "out of range"]

# Products that engines fuse into one, so that their members must agree.
FUSED = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))


@dataclass(frozen=True, kw_only=True)
class GroupIndex:
    """The state of a g_idx. `low` and `high` are its range, `largest` its fullest group.

    `digest` tells two shuffled ones apart; it is empty where groups are consecutive.
    """

    state: State
    low: int = 0
    high: int = 0
    largest: int = 0
    digest: str = ""


def group_index_of(g_idx: torch.Tensor, scheme: WeightScheme) -> GroupIndex:
    """Classify a g_idx as shard/formats/codes.py reads it: -1 throughout means never set."""
    k = len(g_idx)
    low, high = (int(end) for end in torch.aminmax(g_idx))
    if low == high == -1:
        return GroupIndex(state="unset", low=low, high=high)
    if torch.equal(g_idx, (torch.arange(k) // scheme.group_width(k)).to(g_idx.dtype)):
        return GroupIndex(state="sequential", low=low, high=high)
    if low < 0 or high >= scheme.groups(k):
        return GroupIndex(state="out of range", low=low, high=high)
    return GroupIndex(
        state="shuffled",
        low=low,
        high=high,
        largest=int(torch.bincount(g_idx).max()),
        digest=hashlib.sha256(g_idx.numpy().tobytes()).hexdigest(),
    )


def group_index_findings(found: Sequence[tuple[QuantizedModule, GroupIndex]]) -> list[Finding]:
    """Indices that cannot be right, and labels that contradict them."""
    outside = [(module, index) for module, index in found if index.state == "out of range"]
    shuffled = [(module, index) for module, index in found if index.state == "shuffled"]
    uneven = [(m, index) for m, index in shuffled if index.largest > m.scheme.group_width(m.k)]
    unlabelled = [module for module, _ in shuffled if not module.scheme.act_order]
    findings = []
    if outside:
        known = {module.name: (module, index) for module, index in outside}

        def range_of(same: list[str]) -> str:
            module, index = known[same[0]]
            groups = module.scheme.groups(module.k)
            return f"values from {index.low} to {index.high}, but there are {groups} groups"

        findings.append(
            Finding(
                severity="error",
                code="E-QUANT-GIDX",
                where=places(list(known)),
                what=f"g_idx names groups that do not exist{spread(known, range_of)}",
                numbers={m.name: {"low": i.low, "high": i.high} for m, i in outside},
                remedy="the files are damaged, or group_size in config.json is not the true one",
            )
        )
    if uneven:
        sizes = {m.name: (index.largest, m.scheme.group_width(m.k)) for m, index in uneven}

        def size_of(same: list[str]) -> str:
            return "{} features in one group of {}".format(*sizes[same[0]])

        findings.append(
            Finding(
                severity="warning",
                code="W-QUANT-GIDX",
                where=places(list(sizes)),
                what="g_idx puts more input features into a group than group_size, which no "
                f"quantizer does{spread(sizes, size_of)}",
                numbers={name: {"largest_group": n} for name, (n, _) in sizes.items()},
                remedy="compare the files with their source (--sha256)",
            )
        )
    if unlabelled:
        names = [module.name for module in unlabelled]
        findings.append(
            Finding(
                severity="warning",
                code="W-QUANT-ACT-ORDER",
                where=places(names),
                what="config.json says that there is no act-order (desc_act), but g_idx is not in "
                f"order in {plural(len(names), 'weight')}. Engines that believe the label ignore "
                f"it and answer nonsense; isobit uses it{spread(names)}",
                numbers={"modules": names},
                remedy="set desc_act to true in config.json (and quantize_config.json)",
            )
        )
    return findings


def apart_findings(
    spec: ModelSpec, found: Sequence[tuple[QuantizedModule, GroupIndex]]
) -> list[Finding]:
    """Note the q, k, v and gate, up whose members cannot be fused."""
    if spec.quantization is None:
        return []
    digests = {module.name: index.digest for module, index in found}
    lines: dict[str, list[int]] = {}
    for layer in range(spec.layers):
        for block, members in FUSED:
            names = [f"model.layers.{layer}.{block}.{member}" for member in members]
            schemes = [spec.quantization.scheme(name) for name in names]
            known = {digests[name] for name in names if name in digests}
            for what in _differences(schemes, known):
                where = f"model.layers.*.{block}: {', '.join(members)} differ in {what}"
                lines.setdefault(where, []).append(layer)
    if not lines:
        return []
    texts = [f"{text} ({len(layers)} of {spec.layers} layers)" for text, layers in lines.items()]
    return [
        Finding(
            severity="note",
            code="N-QUANT-APART",
            where=", ".join(dict.fromkeys(text.partition(":")[0] for text in lines)),
            what=f"linear layers that engines fuse have members that differ{listed(texts)}",
            numbers=lines,
            remedy="nothing to do: isobit runs them apart. An engine that fuses them must not "
            "let the last one win",
        )
    ]


def _differences(schemes: list[WeightScheme | None], digests: set[str]) -> list[str]:
    quantized = [scheme for scheme in schemes if scheme is not None]
    if quantized and len(quantized) < len(schemes):
        return ["being quantized at all"]
    values = {
        "bits": {scheme.bits for scheme in quantized},
        "group size": {scheme.group_size for scheme in quantized},
        "symmetry": {scheme.symmetric for scheme in quantized},
        "g_idx": digests,
    }
    return [what for what, different in values.items() if len(different) > 1]


def index_report(found: Sequence[tuple[QuantizedModule, GroupIndex]]) -> dict[str, dict[str, int]]:
    """How many g_idx of each module family are in which state."""
    report: dict[str, dict[str, int]] = {}
    for module, index in found:
        name = module.name.rpartition(".")[2] if layer_of(module.name) is not None else module.name
        states = report.setdefault(name, {})
        states[index.state] = states.get(index.state, 0) + 1
    return report
