"""The forward pass of one rank: Llama, Mistral, Qwen2 and Qwen3, cut by a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..kernels import ops
from ..kernels.layout import embedding_rows
from ..shard.load import LayerWeights, RankWeights
from ..shard.plan import ShardPlan
from ..shard.rotary import rotary_tables
from ..shard.spec import ModelSpec
from .trace import Tracer


class Collectives(Protocol):
    """What the decoder needs of the other ranks."""

    def all_reduce(self, partials: torch.Tensor, site: str) -> torch.Tensor: ...

    def all_gather(self, tensor: torch.Tensor, site: str) -> list[torch.Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """The rows of a step as tensors. T rows, B requests, P pages a request.

    `tokens` int64 [T], `positions` int32 [T], `slots` int64 [T] (page * 64 + offset), `owner`
    int32 [T], `block_tables` int32 [B, P], `sampled` int64 [L].
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    owner: torch.Tensor
    block_tables: torch.Tensor
    sampled: torch.Tensor


class Decoder:
    """A rank's shard of a model with its KV cache. The residual stream is float32 throughout."""

    def __init__(
        self,
        spec: ModelSpec,
        plan: ShardPlan,
        rank: int,
        weights: RankWeights,
        collectives: Collectives,
        tracer: Tracer,
        *,
        dtype: torch.dtype,
        kv_pages: int,
    ) -> None:
        self.spec, self.plan, self.rank, self.dtype = spec, plan, rank, dtype
        self.weights, self.collectives, self.tracer = weights, collectives, tracer
        kept = plan.kv_heads(rank)
        self.caches = [
            ops.KVCache.allocate(kv_pages, len(kept), spec.head_size, dtype)
            for _ in range(spec.layers)
        ]
        self.cos, self.sin = rotary_tables(spec.rotary, spec.head_size, spec.max_positions)
        self.head_to_kv = torch.tensor(plan.head_to_kv(rank), dtype=torch.int32)
        owned = plan.owned(rank)
        self._first_atom, self._first_kv = owned.start, kept.start
        self._heads = plan.heads.owned_ends(owned, spec.head_size)
        self._wide = plan.intermediate.owned_ends(owned)
        self._vocab = plan.vocab.owned_ends(owned)
        self._kv = [i * spec.head_size for i in range(len(kept) + 1)]
        self._vocab_sizes = [plan.vocab.slice(plan.owned(r)).size for r in range(plan.degree)]
        self._normed: list[torch.Tensor] = []
        self._last = torch.empty(0)

    @torch.inference_mode()
    def forward(self, step: StepInput) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one step.

        Returns the residual stream after the last layer, float32 [T, hidden], and the logits of
        the sampled rows, float32 [L, vocab]; both in full on every rank.
        """
        self._normed.clear()
        x = self._embed(step.tokens)
        self.tracer.whole("embed_tokens.out", x)
        for layer in range(self.spec.layers):
            x = self._attention(layer, x, step)
            x = self._mlp(layer, x)
        last = ops.rms_norm(
            x[step.sampled], self.weights.final_norm, self.spec.norm_eps, self.dtype
        )
        self.tracer.whole("norm.out", last)
        self._last = last
        return x, self._logits(last)

    def normed(self) -> list[torch.Tensor]:
        """Samples of what every rank normalized alike in the last step, for comparing ranks.

        A norm that differs on one rank changes that rank's part of a sum, and the sum is equal on
        all ranks again: the residual stream cannot tell. Returns the last row behind each layer's
        norms [2 * layers, hidden], and every row behind the final norm.
        """
        return [torch.stack(self._normed), self._last]

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Every rank looks up the tokens in its part of the vocabulary; the owner's row counts."""
        own = self.plan.vocab.slice(self.plan.owned(self.rank))
        local = (tokens - own.offset).clamp(0, max(0, own.size - 1))
        if not own.true:
            rows = torch.zeros((len(tokens), self.spec.hidden_size), dtype=self.dtype)
        elif self.weights.embedding is None:
            rows = embedding_rows(self.weights.head, local)
        else:
            rows = self.weights.embedding[local.clamp(max=own.true - 1)]
        gathered = torch.stack(self.collectives.all_gather(rows, "embed_tokens.out"))
        ends = torch.tensor(self._vocab_sizes).cumsum(0)
        owner = torch.bucketize(tokens, ends, right=True)
        return gathered[owner, torch.arange(len(tokens))].float()

    def _attention(self, layer: int, x: torch.Tensor, step: StepInput) -> torch.Tensor:
        weights, trace = self.weights.layers[layer], self.tracer
        site = f"layers.{layer}.self_attn."
        h = ops.rms_norm(x, weights.input_norm, self.spec.norm_eps, self.dtype)
        trace.whole(f"layers.{layer}.input_layernorm.out", h)
        self._normed.append(h[-1].clone())  # a view would keep every row alive
        q, k, v = (self._column(weights, name, h) for name in ("q", "k", "v"))
        trace.columns(site + "q_proj.out", q, "atom", self._first_atom, self._heads)
        trace.columns(site + "k_proj.out", k, "kv head", self._first_kv, self._kv)
        trace.columns(site + "v_proj.out", v, "kv head", self._first_kv, self._kv)
        rotated = ops.rope_and_cache(
            q,
            k,
            v,
            cos=self.cos,
            sin=self.sin,
            positions=step.positions,
            slots=step.slots,
            cache=self.caches[layer],
            q_norm=weights.q_norm,
            k_norm=weights.k_norm,
            eps=self.spec.norm_eps,
        )
        out = ops.attention(
            rotated,
            self.caches[layer],
            block_tables=step.block_tables,
            row_sequence=step.owner,
            positions=step.positions,
            head_to_kv=self.head_to_kv,
            scale=self.spec.head_size**-0.5,
            window=self.spec.windows[layer],
        )
        trace.columns(site + "attn.out", out, "atom", self._first_atom, self._heads)
        return x + self._row(weights, "o", out, site + "o_proj")

    def _mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        weights, trace = self.weights.layers[layer], self.tracer
        site = f"layers.{layer}.mlp."
        h = ops.rms_norm(x, weights.post_attention_norm, self.spec.norm_eps, self.dtype)
        trace.whole(f"layers.{layer}.post_attention_layernorm.out", h)
        self._normed.append(h[-1].clone())  # a view would keep every row alive
        gate, up = self._column(weights, "gate", h), self._column(weights, "up", h)
        trace.columns(site + "gate_proj.out", gate, "atom", self._first_atom, self._wide)
        trace.columns(site + "up_proj.out", up, "atom", self._first_atom, self._wide)
        inner = ops.silu_mul(gate, up, self.dtype)
        trace.columns(site + "down_proj.in", inner, "atom", self._first_atom, self._wide)
        return x + self._row(weights, "down", inner, site + "down_proj")

    def _column(self, weights: LayerWeights, name: str, x: torch.Tensor) -> torch.Tensor:
        out = ops.linear(x, weights.products[name])[0]
        bias = weights.biases[name]
        return out if bias is None else out + bias

    def _row(self, weights: LayerWeights, name: str, x: torch.Tensor, site: str) -> torch.Tensor:
        """Bias is added once, after the root of the tree."""
        partials = ops.linear(x, weights.products[name])
        self.tracer.partials(site + ".partial", partials, self._first_atom)
        out = self.collectives.all_reduce(partials, site + ".out")
        bias = weights.biases[name]
        out = out if bias is None else out + bias
        self.tracer.whole(site + ".out", out)
        return out

    def _logits(self, last: torch.Tensor) -> torch.Tensor:
        own = ops.linear(last, self.weights.head)[0]
        self.tracer.columns("lm_head.out", own, "atom", self._first_atom, self._vocab)
        most = max(self._vocab_sizes)
        message = torch.zeros((own.shape[0], most))
        message[:, : own.shape[1]] = own
        parts = self.collectives.all_gather(message, "lm_head.out")
        pieces = [part[:, :size] for part, size in zip(parts, self._vocab_sizes, strict=True)]
        logits = torch.cat(pieces, dim=1)[:, : self.spec.vocab_size].contiguous()
        self.tracer.whole("logits", logits)
        return logits
