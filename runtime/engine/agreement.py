"""Ranks against each other: what they loaded, and what every step gave on each of them."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from isobit.errors import InputError, RankFault

from ...kernels import ops
from ...kernels.checks import CPU
from ...kernels.device import AnyWeight
from ...shard.load.load import RankWeights
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ...shard.verify.verify_load import compare
from ..digest import chain_digests, tensor_digest
from ..trace.tracer import TraceRecord, first_difference

CHECKS = ("off", "step", "full")
DIFFERS = "E-RANK-DIFFERS"
DIVERGED = "E-RANK-DIVERGED"
MOST_NAMED = 20


def check_name(name: str) -> str:
    """Return the name of a check; raises InputError E-CHECK for an unknown one."""
    if name not in CHECKS:
        raise InputError("E-CHECK", f"--check {name!r}: expected {', '.join(CHECKS)}")
    return name


def software(model: Path, dtype: torch.dtype, device: torch.device = CPU) -> dict[str, str]:
    """What must be equal on all ranks beside the plan: versions, instruction set, config."""
    kernels = ops.backend(device)
    vnni = f", vnni {kernels['vnni']}" if "vnni" in kernels else ""
    return {
        "isobit": version("isobit"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "instruction set": kernels["isa"] + vnni,
        "dtype": str(dtype).removeprefix("torch."),
        "config.json": tensor_digest(
            torch.frombuffer(bytearray((model / "config.json").read_bytes()), dtype=torch.uint8)
        ),
    }


def replicated(
    spec: ModelSpec, plan: ShardPlan, rank: int, weights: RankWeights[AnyWeight]
) -> dict[str, str]:
    """Digests of what other ranks may hold as well: norms, biases of sums, shared KV heads."""
    found = {"model.norm": tensor_digest(weights.final_norm)}
    for index, layer in enumerate(weights.layers):
        prefix = f"layers.{index}."
        norms = {
            "input_layernorm": layer.input_norm,
            "post_attention_layernorm": layer.post_attention_norm,
            "self_attn.q_norm": layer.q_norm,
            "self_attn.k_norm": layer.k_norm,
            "self_attn.o_proj.bias": layer.biases["o"],
            "mlp.down_proj.bias": layer.biases["down"],
        }
        for name, tensor in norms.items():
            if tensor is not None:
                found[prefix + name] = tensor_digest(tensor)
        for place, head in enumerate(plan.kv_heads(rank)):
            for name in ("k", "v"):
                key = f"{prefix}self_attn.{name}_proj, kv head {head}"
                bias = layer.biases[name]
                found[key] = _head(layer.products[name], bias, place, spec.head_size)
    return found


def _head(weight: AnyWeight, bias: torch.Tensor | None, place: int, size: int) -> str:
    """Digest of one head's columns."""
    begin, end = place * size, (place + 1) * size
    parts = weight.columns(begin, end)
    if bias is not None:
        parts.append(bias[begin:end])
    return chain_digests([tensor_digest(part) for part in parts])


def check_files(reports: Sequence[dict[str, Any]], expected: dict[str, int]) -> None:
    """Raise RankFault E-LOAD-DIFFERS when the shards together are not the file.

    `expected` as file_fingerprints gives them; those of the ranks leave their reports.
    """
    faults = compare(expected, [report.pop("fingerprints") for report in reports])
    wrong = [f"{fault.module}: differs from the file" for fault in faults]
    for report in reports:
        wrong += [f"{name}: padding on rank {report['rank']}" for name in report.pop("padding")]
    if wrong:
        raise RankFault(
            "E-LOAD-DIFFERS", f"{len(wrong)} weights were loaded wrongly:\n" + "\n".join(wrong)
        )


def check_loaded(reports: Sequence[Mapping[str, Any]]) -> None:
    """Raise RankFault E-RANK-DIFFERS naming everything that ranks hold differently."""
    wrong: list[str] = []
    for part in ("software", "replicated"):
        held: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for report in reports:
            for name, value in report[part].items():
                held[name][value].append(report["rank"])
        wrong += [
            f"{name}: " + "; ".join(f"{value} on {_ranks(who)}" for value, who in values.items())
            for name, values in held.items()
            if len(values) > 1
        ]
    plans = {report["plan_hash"] for report in reports}
    if len(plans) > 1:
        wrong.insert(0, f"the plan: {', '.join(sorted(plans))}")
    if wrong:
        more = f"\nand {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise RankFault(
            DIFFERS,
            "ranks differ in what all hold:\n  " + "\n  ".join(wrong[:MOST_NAMED]) + more,
        )


def differing_ranks(answers: Mapping[int, Mapping[str, Any]]) -> dict[str, list[int]]:
    """What a step gave otherwise than on rank 0, and on which ranks."""
    first = answers[0]
    fields = {
        "the residual stream or a normed input": "hidden_digest",
        "the logits": "logits_digests",
    }
    found = {
        what: [rank for rank in sorted(answers) if answers[rank][field] != first[field]]
        for what, field in fields.items()
    }
    return {what: ranks for what, ranks in found.items() if ranks}


def wrong_products(step: int, answers: Mapping[int, Mapping[str, Any]]) -> RankFault | None:
    """The error for a step in which a rank's products were wrong; None when all were right."""
    findings = [
        f"rank {rank}: {finding}"
        for rank in sorted(answers)
        for finding in answers[rank].get("findings", ())
    ]
    if not findings:
        return None
    more = f"\nand {len(findings) - MOST_NAMED} more" if len(findings) > MOST_NAMED else ""
    return RankFault(
        "E-RANK-PRODUCT",
        f"step {step}: linear layers are wrong. No token of this step was let out\n  "
        + "\n  ".join(findings[:MOST_NAMED])
        + more,
    )


def divergence(
    step: int, differing: Mapping[str, list[int]], traces: Sequence[list[TraceRecord]], degree: int
) -> RankFault:
    """The error for a step whose ranks differ, with the first site when there are traces."""
    what = "; ".join(
        f"{name} differs from rank 0 on {_ranks(ranks)}" for name, ranks in differing.items()
    )
    place = ""
    if traces:
        first = first_difference([list(traces)], [list(traces)], (degree, degree))
        if first is not None:
            place = f" First at {first.site} ({first.part}) on rank {first.rank}."
    return RankFault(DIVERGED, f"step {step}: {what}.{place} No token of this step was let out")


def _ranks(ranks: Sequence[int]) -> str:
    return ", ".join(f"rank {rank}" for rank in ranks)
