"""Stored tensors that no product needs: explained by their bytes, or named as unknown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.safetensors_file import SliceReader, TensorEntry
from ..model.rotary import inverse_frequencies
from ..model.spec import ModelSpec
from ..plan.modules import EMBEDDING, HEAD, layer_modules

MOST_BYTES = 64 << 20
"""No table that is known here is larger."""
MASKED = -1e4
"""What old models put where attention must not look."""
# What GPTQ, AWQ and compressed-tensors leave beside a weight although its scheme has no use for it.
GROUP_INDICES = ("g_idx", "weight_g_idx")
UNUSED_PARTS = ("weight_zero_point", "qzeros", "weight_format")


@dataclass(kw_only=True)
class Leftovers:
    """Names of tensors: `explained` by their bytes; `biases` that are not zero and belong to a
    product that has none by config.json; `unknown`, each with what is odd about it.
    """

    explained: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


def sort_leftovers(
    checkpoint: Checkpoint, spec: ModelSpec, names: Iterable[str], lacking: Iterable[str] = ()
) -> Leftovers:
    """Look into the tensors of `names`, except those whose data their file lacks."""
    found, lacking = Leftovers(), set(lacking)
    modules = {
        f"{module.name}.bias"
        for layer in range(spec.layers)
        for module in layer_modules(spec, layer).values()
    }
    with SliceReader() as reader:
        for name in names:
            entry = checkpoint.entries[name]
            if name in lacking or entry.nbytes > MOST_BYTES or name == f"{HEAD}.weight":
                values = None
            else:
                values = reader.read(entry)
            if name in modules and (values is None or bool(values.any())):
                found.biases.append(name)
                continue
            odd = _oddity(name, entry, values, spec)
            if odd is None:
                found.explained.append(name)
            else:
                found.unknown[name] = odd
    return found


def _oddity(
    name: str, entry: TensorEntry, values: torch.Tensor | None, spec: ModelSpec
) -> str | None:
    """What is odd about a tensor; None for one that says nothing that is not known without it."""
    last = name.rpartition(".")[2]
    if name == f"{HEAD}.weight" and spec.tied_embeddings and spec.embedding == EMBEDDING:
        return None  # compared when the embeddings were found to be tied
    if values is None:
        return f"{list(entry.shape)}, not looked into"
    if last == "bias" and not bool(values.any()):
        return None
    if last in UNUSED_PARTS:
        return None
    if last in GROUP_INDICES:
        return None if _in_order(values) else "its groups are out of order, and not used"
    if last == "inv_freq":
        return None if _is_table(values, spec) else "not the frequencies that config.json gives"
    if last == "masked_bias":
        masked = values.numel() == 1 and float(values.float()) <= MASKED
        return None if masked else "not a number that masks"
    if name.endswith("attn.bias"):
        return None if _is_causal(values) else "not a causal mask"
    return ""


def _in_order(g_idx: torch.Tensor) -> bool:
    """Groups one after the other, all of one length but the last; -1: never set."""
    if not g_idx.numel() or bool((g_idx == -1).all()):
        return True
    index = g_idx.flatten().long()
    width = int((index == 0).sum())
    return width > 0 and torch.equal(index, torch.arange(len(index)) // width)


def _is_table(values: torch.Tensor, spec: ModelSpec) -> bool:
    """Whether these are the rotary frequencies, scaled or not, as far as their dtype holds them."""
    table = values.flatten().double()
    scaled = inverse_frequencies(spec.rotary, spec.head_size)
    exponents = torch.arange(0, spec.head_size, 2, dtype=torch.float64) / spec.head_size
    # A table is computed in float32 and stored in the dtype of the model.
    eps = max(4e-6, torch.finfo(values.dtype).eps) if values.is_floating_point() else 0.0
    return any(
        table.shape == wanted.shape and torch.allclose(table, wanted, rtol=eps, atol=6e-8)
        for wanted in (scaled, spec.rotary.theta**-exponents)
    )


def _is_causal(values: torch.Tensor) -> bool:
    """A square of ones at and below the diagonal, which may have dimensions of 1 in front."""
    if values.dim() < 2 or values.shape[-1] != values.shape[-2]:
        return False
    if values.numel() != values.shape[-1] ** 2:
        return False
    square = values.view(values.shape[-2:]).bool()
    return torch.equal(square, torch.ones_like(square).tril())
