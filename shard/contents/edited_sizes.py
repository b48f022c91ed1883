"""Sizes in config.json that the tensors contradict, such as an intermediate_size edited by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from ..checkpoint.checkpoint import Checkpoint
from ..model.spec import ModelSpec
from ..names import layer_of, plural
from .contradictions import Contradiction, same_shape
from .expected_tensors import expected_tensors, stored_intermediate_size

_FIELDS = {
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "num_hidden_layers": "layers",
}
"""Names in config.json and in ModelSpec."""


def edited_sizes(
    checkpoint: Checkpoint, spec: ModelSpec, unread: Collection[str] = ()
) -> tuple[list[Contradiction], ModelSpec]:
    """Sizes of config.json that the tensors contradict; the tensors' sizes are taken from here on.

    A size counts as edited only when replacing it makes contradictions disappear, so one damaged
    tensor does not outvote the others.
    """
    embedding = checkpoint.first_shape(f"{spec.embedding}.weight")
    names = {*checkpoint.entries, *unread}
    layers = {number for name in names if (number := layer_of(name)) is not None}
    said = {
        "intermediate_size": (spec.intermediate_size, stored_intermediate_size(checkpoint)),
        "vocab_size": (spec.vocab_size, embedding[0] if embedding else None),
        "num_hidden_layers": (spec.layers, _first_absent(layers)),
    }
    findings = []
    for key, (config, tensors) in said.items():
        if tensors is None or tensors == config or tensors <= 0:
            continue
        changed = dataclasses.replace(spec, **{_FIELDS[key]: tensors})
        before, after = (_contradictions(checkpoint, each, unread) for each in (spec, changed))
        if after >= before:
            continue
        spec = changed
        findings.append(_edited(key, config, tensors, before - after))
    return findings, spec


def _first_absent(layers: set[int]) -> int:
    """How many layers there are from 0 on: a number far beyond them is a name, not a layer."""
    return next(number for number in range(len(layers) + 1) if number not in layers)


def _edited(key: str, config: int, tensors: int, explained: int) -> Contradiction:
    remedy = f"set {key} to {tensors} in config.json"
    if key == "intermediate_size":
        remedy += ". To make a model divisible use isobit pad, which pads the tensors too"
    if key == "num_hidden_layers" and tensors < config:
        remedy = f"find the files with layers {tensors} to {config - 1}, or {remedy}"
    return Contradiction(
        code="E-CONFIG-SHAPE",
        where=f"config.json: {key}",
        what=f"config.json says {config}, the tensors say {tensors}: "
        f"{plural(explained, 'contradiction')} for this reason",
        numbers={"config": config, "tensors": tensors, "contradicting_tensors": explained},
        remedy=remedy,
    )


def _contradictions(checkpoint: Checkpoint, spec: ModelSpec, unread: Collection[str]) -> int:
    """Tensors of wrong shape, missing, or in layers that config.json does not know."""
    expected, entries = expected_tensors(spec), checkpoint.entries
    wrong = sum(
        not same_shape(tensor.shape, entries[name].shape)
        if name in entries
        else tensor.required and name not in unread
        for name, tensor in expected.items()
    )
    beyond = sum((layer_of(name) or 0) >= spec.layers for name in entries)
    return wrong + beyond
