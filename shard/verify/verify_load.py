"""Proving after loading that the shards together are the file, element by element.

The fingerprints of pieces that are cut add up to that of the file whatever the cut; what several
ranks hold alike (norms, the biases of row-parallel products, a KV head at a boundary) must be that
of the file on each of them. What a rank reports is computed from the tensors that its kernels read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...kernels.weights.layout import PackedWeight
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.safetensors_file import SliceReader
from ..contents.expected_tensors import norm_sizes
from ..load.act_order import mlp_order
from ..load.load import LayerWeights, RankWeights
from ..model.spec import ModelSpec
from ..plan.modules import (
    LinearModule,
    embedding_module,
    feature_slice,
    head_module,
    layer_modules,
)
from ..plan.plan import ShardPlan
from .fingerprint import (
    Elements,
    packed_elements,
    row_fingerprints,
    stored_elements,
    vector_fingerprints,
)

COPY = "copy of "
"""Begins the key of something that every rank holding it has as a whole."""
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True, kw_only=True)
class LoadFault:
    """What is not as in the file: a weight, bias or norm; with its rank where that is known."""

    module: str


def rank_fingerprints(
    checkpoint: Checkpoint, spec: ModelSpec, plan: ShardPlan, rank: int, weights: RankWeights
) -> dict[str, int]:
    """Fingerprints of what this rank holds: every product, bias and norm, and the embedding.

    Padding is not counted here: `padding_faults` checks it.
    """
    found: dict[str, int] = {}
    kept = plan.kv_heads(rank).start
    for layer in range(spec.layers):
        held = weights.layers[layer]
        for name, module in layer_modules(spec, layer).items():
            rows, columns = _places(checkpoint, spec, plan, rank, module, layer)
            numbers = row_fingerprints(
                packed_elements(held.products[name]), rows, columns, module.k
            )
            found |= _of_product(module, spec, numbers, kept)
            bias = held.biases[name]
            if bias is None and module.bias:
                bias = torch.zeros(len(rows))
            if bias is not None:
                numbers = vector_fingerprints(bias, rows)
                found |= _of_product(module, spec, numbers, kept, bias=True)
        for name in norm_sizes(spec, layer):
            found |= _of_norm(name, _norm(held, name))
    found |= _of_norm(FINAL_NORM, weights.final_norm)
    head, embedding = head_module(spec), embedding_module(spec)
    own = feature_slice(plan, head, rank)
    rows, columns = torch.arange(own.offset, own.offset + own.true), torch.arange(head.k)
    numbers = row_fingerprints(packed_elements(weights.head), rows, columns, head.k)
    found |= _of_product(head, spec, numbers)
    if weights.embedding is not None:
        table = Elements(values=weights.embedding)
        found |= _of_product(embedding, spec, row_fingerprints(table, rows, columns, head.k))
    return found


def file_fingerprints(
    checkpoint: Checkpoint, spec: ModelSpec, dtype: torch.dtype
) -> dict[str, int]:
    """Fingerprints of all of that as the file has it, dense weights converted to `dtype`."""
    found: dict[str, int] = {}
    modules = [m for layer in range(spec.layers) for m in layer_modules(spec, layer).values()]
    modules.append(head_module(spec))
    if not spec.tied_embeddings:
        modules.append(embedding_module(spec))
    norms = [name for layer in range(spec.layers) for name in norm_sizes(spec, layer)]
    with SliceReader() as reader:
        for module in modules:
            rows, columns = torch.arange(module.n), torch.arange(module.k)
            elements = stored_elements(checkpoint, reader, spec, module, dtype)
            numbers = row_fingerprints(elements, rows, columns, module.k)
            found |= _of_product(module, spec, numbers)
            if module.bias:
                bias = reader.read(checkpoint.entries[f"{module.name}.bias"]).float()
                numbers = vector_fingerprints(bias, rows)
                found |= _of_product(module, spec, numbers, bias=True)
        for name in [*norms, FINAL_NORM]:
            found |= _of_norm(name, reader.read(checkpoint.entries[name]).float())
    return found


def compare(expected: dict[str, int], ranks: list[dict[str, int]]) -> list[LoadFault]:
    """Everything whose pieces do not add up to the file, and every copy that is not the file.

    What the file does not have is a fault as well.
    """
    reported = {key for rank in ranks for key in rank}
    wrong = [key.removeprefix(COPY) for key in sorted(reported - set(expected))]
    for key, value in expected.items():
        if not key.startswith(COPY):
            if sum(rank.get(key, 0) for rank in ranks) % 2**64 != value:
                wrong.append(key)
            continue
        name = key.removeprefix(COPY)
        copies = {rank: found[key] for rank, found in enumerate(ranks) if key in found}
        if not copies:
            wrong.append(f"{name} on no rank")
        wrong += [f"{name} on rank {rank}" for rank, found in copies.items() if found != value]
    return [LoadFault(module=name) for name in wrong]


def padding_faults(plan: ShardPlan, rank: int, spec: ModelSpec, weights: RankWeights) -> list[str]:
    """Names of this rank's weights and biases with a padded element that is not exactly zero."""
    bad = []
    for layer in range(spec.layers):
        held = weights.layers[layer]
        for name, module in layer_modules(spec, layer).items():
            own, rows = feature_slice(plan, module, rank), module.parallel == "column"
            if own.true == own.size:
                continue
            if _has_bad_padding(held.products[name], own.true, not rows):
                bad.append(module.name)
            bias = held.biases[name]
            if rows and bias is not None and bool(bias[own.true :].any()):
                bad.append(f"{module.name}.bias")
    head = head_module(spec)
    own = feature_slice(plan, head, rank)
    if own.true < own.size and _has_bad_padding(weights.head, own.true, False):
        bad.append(head.name)
    if weights.embedding is not None and bool(weights.embedding[own.true :].any()):
        bad.append(embedding_module(spec).name)
    return bad


def _has_bad_padding(packed: PackedWeight, true: int, row_parallel: bool) -> bool:
    elements = packed_elements(packed)

    def padded(values: torch.Tensor) -> torch.Tensor:
        return values[:, true:] if row_parallel else values[true:]

    if elements.scales is None:
        return bool(padded(elements.values).any())
    if not elements.scales[0].isfinite().all():
        return True
    middle = 8 if packed.kind == "int4" else 128
    if elements.zeros is None:
        return bool((padded(elements.values) != middle).any())
    zeros, runs = elements.zeros
    return bool((padded(elements.values) != padded(zeros[:, runs])).any())


def _of_norm(name: str, values: torch.Tensor | None) -> dict[str, int]:
    """A norm that is absent counts as one without elements."""
    values = torch.empty(0) if values is None else values
    return {COPY + name: _total(vector_fingerprints(values, torch.arange(len(values))))}


def _of_product(
    module: LinearModule,
    spec: ModelSpec,
    rows: np.ndarray,
    first_head: int = 0,
    bias: bool = False,
) -> dict[str, int]:
    """One entry, or one per KV head, the only features that two ranks may both hold."""
    name = f"{module.name}.bias" if bias else module.name
    if bias and module.parallel == "row":
        return {COPY + name: _total(rows)}
    if module.dimension != "kv_heads":
        return {name: _total(rows)}
    heads = rows.reshape(-1, spec.head_size)
    return {
        f"{COPY}{name} KV head {first_head + index}": _total(head)
        for index, head in enumerate(heads)
    }


def _total(numbers: np.ndarray) -> int:
    return int(numbers.sum(dtype=np.uint64))


def _norm(held: LayerWeights, name: str) -> torch.Tensor | None:
    norms = {
        "input_layernorm": held.input_norm,
        "post_attention_layernorm": held.post_attention_norm,
        "q_norm": held.q_norm,
        "k_norm": held.k_norm,
    }
    return norms[name.split(".")[-2]]


def _places(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    module: LinearModule,
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the whole weight that a rank's packed weight holds, in its order."""
    own = feature_slice(plan, module, rank)
    cut = torch.arange(own.offset, own.offset + own.true)
    if module.dimension == "intermediate":
        with SliceReader() as reader:
            order = mlp_order(checkpoint, reader, spec, layer)
        cut = cut if order is None else order[cut]
    if module.parallel == "column":
        return cut, torch.arange(module.k)
    return torch.arange(module.n), cut
