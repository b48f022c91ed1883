"""Tied embeddings by the files: `tie_word_embeddings` is a word of the config, the bytes decide.

As transformers 5.23 (PreTrainedModel.tie_weights): where embedding and head are both stored and
differ, each is used; where only the head is stored, it serves for both.
"""

from __future__ import annotations

import dataclasses
import logging

import torch

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.safetensors_file import SliceReader, TensorEntry
from ..formats import dense, quantized_format
from ..model.spec import ModelSpec
from ..plan.modules import EMBEDDING, HEAD, LinearModule, head_module

log = logging.getLogger("isobit.shard")

PART_ELEMENTS = 1 << 22


def with_stored_head(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """The spec as the files have it: untied where the file has a head of its own, with a warning.

    Reads embedding and head, up to the first difference, where both are stored.
    """
    if not spec.tied_embeddings:
        return spec
    entries = checkpoint.entries
    embedding, head = entries.get(f"{EMBEDDING}.weight"), entries.get(f"{HEAD}.weight")
    untied = dataclasses.replace(spec, tied_embeddings=False)
    scheme = spec.scheme(HEAD)
    if scheme is not None:
        stored = _stored_parts(head_module(untied), untied)
        if all(name in entries for name in stored):
            return _warned(untied, checkpoint)
    if head is None:
        return spec
    if embedding is None:
        if scheme is None:
            return dataclasses.replace(spec, embedding=HEAD)
        return spec
    return spec if same_values(embedding, head, spec.torch_dtype) else _warned(untied, checkpoint)


def _stored_parts(head: LinearModule, spec: ModelSpec) -> list[str]:
    """Names of the tensors that a quantized head must have."""
    scheme = spec.scheme(head.name)
    if scheme is None:
        parts = dense.expected_tensors(head.name, head.n, head.k)
    else:
        form = quantized_format(scheme.format)
        parts = form.expected_tensors(head.name, head.n, head.k, scheme)
    return [name for name, tensor in parts.items() if tensor.required]


def _warned(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    log.warning(
        "%s: config.json says tie_word_embeddings, and the files have an %s that is not the "
        "embedding: it is used, as in transformers. Set tie_word_embeddings to false in "
        "config.json",
        checkpoint.folder,
        HEAD,
    )
    return spec


def same_values(a: TensorEntry, b: TensorEntry, dtype: torch.dtype) -> bool:
    """Whether two matrices [N, K] are equal when both are read as `dtype`; NaN equals nothing."""
    if a.shape != b.shape or len(a.shape) != 2:
        return False
    n, k = a.shape
    step = max(1, PART_ELEMENTS // max(1, k))
    with SliceReader() as reader:
        for begin in range(0, n, step):
            rows, columns = slice(begin, min(begin + step, n)), slice(0, k)
            parts = [reader.read(entry, rows, columns).to(dtype) for entry in (a, b)]
            if not torch.equal(*parts):
                return False
    return True
