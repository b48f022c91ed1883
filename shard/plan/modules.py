"""The modules of a model and how each is sharded: Megatron's column and row parallelism.

Column parallel: output features are cut, every rank sees all inputs. Row parallel: input features
are cut, and the outputs are sums over ranks (Shoeybi et al., arXiv 1909.08053).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..model.spec import ModelSpec
from .plan import ShardPlan, Slice

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
Parallel = Literal["column", "row"]


@dataclass(frozen=True, kw_only=True)
class LinearModule:
    """One product of the model: a weight [n, k], and which dimension of the plan cuts it."""

    name: str
    n: int
    k: int
    parallel: Parallel
    dimension: Literal["heads", "kv_heads", "intermediate", "vocab"]
    bias: bool


def layer_modules(spec: ModelSpec, layer: int) -> dict[str, LinearModule]:
    """The products of one layer by short name: q, k, v, o, gate, up, down."""
    prefix = f"model.layers.{layer}."
    hidden, queries = spec.hidden_size, spec.heads * spec.head_size
    kv = spec.kv_heads * spec.head_size

    def module(
        name: str, n: int, k: int, parallel: Parallel, dimension: str, bias: bool
    ) -> LinearModule:
        return LinearModule(
            name=prefix + name,
            n=n,
            k=k,
            parallel=parallel,
            dimension=dimension,  # pyright: ignore[reportArgumentType]
            bias=bias,
        )

    wide = spec.intermediate_size
    return {
        "q": module("self_attn.q_proj", queries, hidden, "column", "heads", spec.qkv_bias),
        "k": module("self_attn.k_proj", kv, hidden, "column", "kv_heads", spec.qkv_bias),
        "v": module("self_attn.v_proj", kv, hidden, "column", "kv_heads", spec.qkv_bias),
        "o": module("self_attn.o_proj", hidden, queries, "row", "heads", spec.o_bias),
        "gate": module("mlp.gate_proj", wide, hidden, "column", "intermediate", spec.mlp_bias),
        "up": module("mlp.up_proj", wide, hidden, "column", "intermediate", spec.mlp_bias),
        "down": module("mlp.down_proj", hidden, wide, "row", "intermediate", spec.mlp_bias),
    }


def embedding_module(spec: ModelSpec) -> LinearModule:
    """The table of token embeddings [vocab, hidden]."""
    return _vocab_module(spec, spec.embedding)


def head_module(spec: ModelSpec) -> LinearModule:
    """The product that makes logits; with tied embeddings its weight is the embedding's."""
    return _vocab_module(spec, spec.embedding if spec.tied_embeddings else HEAD)


def _vocab_module(spec: ModelSpec, name: str) -> LinearModule:
    return LinearModule(
        name=name,
        n=spec.vocab_size,
        k=spec.hidden_size,
        parallel="column",
        dimension="vocab",
        bias=False,
    )


def feature_slice(plan: ShardPlan, module: LinearModule, rank: int) -> Slice:
    """The features of the cut side (N or K) that a rank owns, in elements, padding included."""
    owned = plan.owned(rank)
    if module.dimension == "kv_heads":
        kept, d = plan.kv_heads(rank), plan.head_size
        return Slice(offset=kept.start * d, size=len(kept) * d, true=len(kept) * d)
    if module.dimension == "heads":
        heads, d = plan.heads.slice(owned), plan.head_size
        return Slice(offset=heads.offset * d, size=heads.size * d, true=heads.true * d)
    if module.dimension == "vocab":
        return plan.vocab.slice(owned)
    return plan.intermediate.slice(owned)


def atom_ends(plan: ShardPlan, module: LinearModule, rank: int) -> list[int]:
    """Ends of a rank's atoms in features, relative to its slice: [0, end of atom 0, ...]."""
    owned = plan.owned(rank)
    cut, d = (plan.heads, plan.head_size) if module.dimension == "heads" else (plan.intermediate, 1)
    return cut.owned_ends(owned, d)
