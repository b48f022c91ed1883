"""What a rank under examination answers about itself."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from ...shard.checkpoint.checkpoint import open_checkpoint
from ...shard.model.rotary import rotary_tables
from ...shard.plan.plan import ShardPlan
from ...shard.verify.compare_weights import compare_ends, compare_layer
from ...shard.verify.verify_load import padding_faults, rank_fingerprints
from ..collectives.tree import subtree_merges
from ..forward.decoder import Decoder
from ..selfcheck.op_check import OpCheck
from .collective_drill import drill


class Examination:
    """Belongs to a worker. `operations` watches its forward passes."""

    def __init__(self, plan: ShardPlan, rank: int, dtype: torch.dtype) -> None:
        self.plan, self.rank, self.dtype = plan, rank, dtype
        self.operations = OpCheck(plan, rank)

    def answer(self, kind: str, model: Path, decoder: Decoder) -> dict[str, Any]:
        """The answer to a question by its name: audit, drill, operations."""
        if kind == "drill":
            return drill(decoder, self.plan, self.rank)
        if kind == "operations":
            return {"findings": self.operations.take()}
        return self._audit(model, decoder)

    def _audit(self, model: Path, decoder: Decoder) -> dict[str, Any]:
        """Everything that this rank holds against the file and the plan."""
        checkpoint, spec, weights = open_checkpoint(model), decoder.spec, decoder.weights
        differences = []
        for layer, held in enumerate(weights.layers):
            wanted, found = compare_layer(
                checkpoint, spec, self.plan, self.rank, layer, held, self.dtype
            )
            differences += found
            self.operations.learn(layer, wanted)
        ends, found = compare_ends(checkpoint, spec, self.plan, self.rank, weights, self.dtype)
        self.operations.learn_head(ends.head)
        differences += found
        answer: dict[str, Any] = {
            "differences": [dataclasses.asdict(each) for each in differences],
            "same": _dtypes(decoder) | _settings(decoder),
            "tables": [],
            "fingerprints": {},
            "padding": [],
        }
        if not differences:
            # An independent way to the same end: it shares no code with loading.
            answer["fingerprints"] = rank_fingerprints(
                checkpoint, spec, self.plan, self.rank, weights
            )
            answer["padding"] = padding_faults(self.plan, self.rank, spec, weights)
        # With another dtype the forward pass may not even record.
        if decoder.dtype == self.dtype:
            answer["tables"] = _tables(decoder, self.plan, self.rank)
        return answer


def _dtypes(decoder: Decoder) -> dict[str, str]:
    """The dtypes that a rank computes in."""
    return {
        "activations": _name(decoder.dtype),
        "KV cache": ", ".join(sorted({_name(cache.dtype) for cache in decoder.caches})),
        "torch's default": _name(torch.get_default_dtype()),
    }


def _settings(decoder: Decoder) -> dict[str, str]:
    """What a rank was told of the model and the plan, in short."""
    spec = hashlib.sha256(repr(decoder.spec).encode()).hexdigest()[:16]
    return {"the model's settings": spec, "the plan": decoder.plan.content_hash()}


def _tables(decoder: Decoder, plan: ShardPlan, rank: int) -> list[dict[str, Any]]:
    """Tables that the forward pass was recorded with and that are not what the plan says."""
    spec = decoder.spec
    cos, sin = rotary_tables(spec.rotary, spec.head_size, spec.max_positions)
    wanted = {
        "head_to_kv": torch.tensor(plan.head_to_kv(rank), dtype=torch.int32),
        "merges": torch.tensor(subtree_merges(plan.atoms, plan.owned(rank)), dtype=torch.int32),
        "cos": cos,
        "sin": sin,
    }
    found = []
    for name, held in decoder.recorded.tables().items():
        if not torch.equal(held, wanted[name]):
            first = held.shape == wanted[name].shape and (held != wanted[name]).nonzero()[0]
            found.append(
                {
                    "table": name,
                    "held": str(held.tolist())[:200] if held.dim() == 1 else f"first at {first}",
                    "wanted": str(wanted[name].tolist())[:200] if held.dim() == 1 else "the config",
                }
            )
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
