"""One rank's forward pass, recorded op by op: Llama, Mistral, Qwen2 and Qwen3, cut by a plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from ...kernels.device import HOST, AnyWeight, Device
from ...kernels.program import record, record_rows
from ...kernels.step.buffer import Buffer
from ...kernels.step.kv_cache import KVCache
from ...shard.load.load import RankWeights
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ..collectives.interface import Collectives
from ..collectives.recorded import record_all_gather
from ..selfcheck.op_check import OpCheck
from ..selfcheck.product_check import ProductCheck
from ..trace.tracer import Parts, Tracer
from .layer import LayerRecorder, Pending


class ForwardPass(LayerRecorder):
    """The recorded program and the buffers in which its results are found.

    `hidden` float32 [T, hidden]: the residual stream after the last layer. `logits` float32
    [L, vocab]. `normed` [2 * layers, hidden]: the last row behind each layer's norms; `last`
    [L, hidden]: every row behind the final norm. `merges` int32 [atoms of this rank]: the tree.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: ShardPlan,
        rank: int,
        weights: RankWeights,
        caches: Sequence[KVCache],
        collectives: Collectives,
        tracer: Tracer,
        dtype: torch.dtype,
        products: ProductCheck | OpCheck | None = None,
        device: Device[AnyWeight] = HOST,
    ) -> None:
        super().__init__(spec, plan, rank, caches, collectives, tracer, dtype, products, device)
        self.weights = weights
        self._vocab_sizes = [plan.vocab.slice(plan.owned(r)).size for r in range(plan.degree)]
        self._record()

    def _record(self) -> None:
        self._embed()
        pending: Pending | None = None
        for layer, weights in enumerate(self.weights.layers):
            pending = self.record_layer(layer, weights, pending)
        assert pending is not None
        self.record_end(pending)
        self._logits()
        record_rows.read_out(self.program, self.hidden, self.normed, self.last, self.logits)

    def _embed(self) -> None:
        """Every rank looks up the tokens in its part of the vocabulary; the owner's row counts."""
        own = self.plan.vocab.slice(self.plan.owned(self.rank))
        rows = self.program.buffer(self.spec.hidden_size, self.dtype)
        table = self.weights.head if self.weights.embedding is None else self.weights.embedding
        if own.true:
            record_rows.embed(self.program, table, own.offset, own.true, rows)
        gathered = self._all_gather(rows, "embed_tokens.out")
        ends = list(accumulate(self._vocab_sizes))
        record_rows.owned_rows(self.program, gathered, ends, self.hidden)
        self._watch("embed_tokens.out", self.hidden)

    def _logits(self) -> None:
        program, spec = self.program, self.spec
        program.use_sampled_rows()
        rows = program.buffer(spec.hidden_size, torch.float32)
        self.last = program.buffer(spec.hidden_size, self.dtype)
        own = program.buffer(max(self._vocab_sizes), torch.float32)
        record_rows.sampled_rows(program, self.hidden, rows)
        record.rms_norm(program, rows, self.weights.final_norm, spec.norm_eps, self.last)
        self._ops.norm("norm", rows, self.weights.final_norm, spec.norm_eps, self.last)
        self._watch("norm.out", self.last)
        record.linear(program, self.last, [self.weights.head], [own])
        self._check_product("lm_head", self.weights.head, self.last, own, None)
        owned = self.plan.owned(self.rank)
        parts = Parts.atoms(
            owned, self.plan.vocab.owned_ends(owned), self.plan.vocab.slice(owned).offset
        )
        self._watch_columns("lm_head.out", own, parts)
        gathered = self._all_gather(own, "lm_head.out")
        self.logits = program.buffer(spec.vocab_size, torch.float32)
        record_rows.join_columns(program, gathered, self._vocab_sizes, self.logits)
        self._watch("logits", self.logits)

    def _all_gather(self, buffer: Buffer, site: str) -> Buffer:
        if self.plan.degree == 1:
            return buffer
        gathered = self.program.buffer(buffer.width, buffer.dtype, planes=self.plan.degree)
        record_all_gather(self.program, self.collectives, buffer, gathered, site)
        return gathered
