"""The sites of a model: every tensor of the forward pass that can be watched, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan

Cut = Literal["whole", "intermediate", "heads", "kv heads", "vocab", "atoms"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A named tensor `[T, width]`, or `[L, width]` of the sampled rows alone.

    `width` counts the columns of the unsharded tensor without padding. `cut` says what of it a
    rank holds: "whole" all columns, "atoms" the partial sums [T, N] of its atoms side by side.
    """

    name: str
    dtype: torch.dtype
    width: int
    cut: Cut
    sampled: bool = False


def model_sites(spec: ModelSpec, plan: ShardPlan, dtype: torch.dtype) -> list[Site]:
    """The sites of a model that runs in `dtype`, in the order of the forward pass."""
    return list(_sites(spec, plan, dtype))


def site_names(spec: ModelSpec, plan: ShardPlan) -> list[str]:
    """The names alone."""
    return [site.name for site in _sites(spec, plan, torch.float32)]


def rank_columns(site: Site, spec: ModelSpec, plan: ShardPlan, rank: int) -> range:
    """The columns of the unsharded tensor that a rank holds, padding included."""
    owned = plan.owned(rank)
    if site.cut == "whole":
        return range(site.width)
    if site.cut == "kv heads":
        heads = plan.kv_heads(rank)
        return range(heads.start * spec.head_size, heads.stop * spec.head_size)
    if site.cut == "atoms":
        return range(owned.start * spec.hidden_size, owned.stop * spec.hidden_size)
    dimension = {"intermediate": plan.intermediate, "heads": plan.heads, "vocab": plan.vocab}
    own, unit = dimension[site.cut].slice(owned), spec.head_size if site.cut == "heads" else 1
    return range(own.offset * unit, own.end * unit)


def step_bytes(
    sites: list[Site], spec: ModelSpec, plan: ShardPlan, rank: int, rows: int, sampled: int
) -> int:
    """Bytes of the values of a step at some sites on one rank."""
    return sum(
        len(rank_columns(site, spec, plan, rank))
        * site.dtype.itemsize
        * (sampled if site.sampled else rows)
        for site in sites
    )


def _sites(spec: ModelSpec, plan: ShardPlan, dtype: torch.dtype) -> Iterator[Site]:
    fp32, hidden = torch.float32, spec.hidden_size
    queries, keys = spec.heads * spec.head_size, spec.kv_heads * spec.head_size

    def whole(name: str, dtype: torch.dtype) -> Site:
        return Site(name=name, dtype=dtype, width=hidden, cut="whole")

    def sum_of(module: str, residual: str) -> Iterator[Site]:
        yield Site(name=module + ".partial", dtype=fp32, width=plan.atoms * hidden, cut="atoms")
        yield whole(module + ".out", fp32)
        yield whole(residual, fp32)

    yield whole("embed_tokens.out", fp32)
    for layer in range(spec.layers):
        at = f"layers.{layer}."
        attention, mlp = at + "self_attn.", at + "mlp."
        yield whole(at + "input_layernorm.out", dtype)
        yield Site(name=attention + "q_proj.out", dtype=fp32, width=queries, cut="heads")
        yield Site(name=attention + "k_proj.out", dtype=fp32, width=keys, cut="kv heads")
        yield Site(name=attention + "v_proj.out", dtype=fp32, width=keys, cut="kv heads")
        yield Site(name=attention + "q_rope.out", dtype=dtype, width=queries, cut="heads")
        yield Site(name=attention + "k_rope.out", dtype=dtype, width=keys, cut="kv heads")
        yield Site(name=attention + "o_proj.in", dtype=dtype, width=queries, cut="heads")
        yield from sum_of(attention + "o_proj", attention + "residual")
        yield whole(at + "post_attention_layernorm.out", dtype)
        wide = spec.intermediate_size
        yield Site(name=mlp + "gate_proj.out", dtype=fp32, width=wide, cut="intermediate")
        yield Site(name=mlp + "up_proj.out", dtype=fp32, width=wide, cut="intermediate")
        yield Site(name=mlp + "down_proj.in", dtype=dtype, width=wide, cut="intermediate")
        yield from sum_of(mlp + "down_proj", mlp + "residual")
    vocab = spec.vocab_size
    yield Site(name="norm.out", dtype=dtype, width=hidden, cut="whole", sampled=True)
    yield Site(name="lm_head.out", dtype=fp32, width=vocab, cut="vocab", sampled=True)
    yield Site(name="logits", dtype=fp32, width=vocab, cut="whole", sampled=True)
