"""Recording the ops of a layer: norms, attention, MLP, and the buffers that layers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...kernels.device import HOST, AnyWeight, Device
from ...kernels.program import record, record_rows
from ...kernels.step.buffer import Buffer
from ...kernels.step.kv_cache import KVCache
from ...kernels.step.step import StepLimits
from ...kernels.weights.layout import PackedWeight
from ...shard.load.load import LayerWeights
from ...shard.model.rotary import rotary_tables
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ..collectives.interface import Collectives
from ..collectives.recorded import record_all_reduce
from ..collectives.tree import subtree_merges
from ..selfcheck.op_check import OpCheck
from ..selfcheck.op_hooks import OpHooks
from ..selfcheck.product_check import ProductCheck, product_name
from ..trace.tracer import Parts, Tracer


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The root of a sum over atoms that has not yet joined the residual stream.

    `site` is that of the sum, `residual` that of the stream with it.
    """

    root: Buffer
    bias: torch.Tensor | None
    site: str
    residual: str


class LayerRecorder:
    """A program and what layers need to be recorded into it.

    `hidden` float32 [T, hidden]: the residual stream. `normed` [2 * layers, hidden]: the last row
    behind each layer's norms. `merges` int32 [atoms of this rank]: the tree.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: ShardPlan,
        rank: int,
        caches: Sequence[KVCache],
        collectives: Collectives,
        tracer: Tracer,
        dtype: torch.dtype,
        products: ProductCheck | OpCheck | None = None,
        device: Device[AnyWeight] = HOST,
    ) -> None:
        self.spec, self.plan, self.rank, self.dtype = spec, plan, rank, dtype
        self.caches = caches
        self.collectives, self.tracer, self.products = collectives, tracer, products
        limits = StepLimits(
            vocabulary=spec.vocab_size, positions=spec.max_positions, pages=caches[0].pages
        )
        self.program = device.program(limits)
        watching = products if isinstance(products, OpCheck) else None
        self._ops = OpHooks(self.program, watching)
        turns = rotary_tables(spec.rotary, spec.head_size, spec.max_positions)
        self._cos, self._sin = (table.to(device.device) for table in turns)
        self._head_to_kv = torch.tensor(plan.head_to_kv(rank), dtype=torch.int32)
        owned, kept = plan.owned(rank), plan.kv_heads(rank)
        self.merges = torch.tensor(subtree_merges(plan.atoms, owned), dtype=torch.int32)
        self._first_atom = owned.start
        head = spec.head_size
        self._heads = plan.heads.owned_ends(owned, head)
        self._wide = plan.intermediate.owned_ends(owned)
        self._kv = [i * head for i in range(len(kept) + 1)]
        queries, wide = plan.heads.slice(owned), plan.intermediate.slice(owned)
        self._query_parts = Parts.atoms(owned, self._heads, queries.offset * head)
        self._key_parts = Parts(
            kind="kv head", first=kept.start, ends=self._kv, begin=kept.start * head
        )
        self._wide_parts = Parts.atoms(owned, self._wide, wide.offset)
        self.normed = torch.empty(
            2 * spec.layers, spec.hidden_size, dtype=dtype, device=device.device
        )
        self._make_buffers()

    def record_layer(self, layer: int, weights: LayerWeights, pending: Pending | None) -> Pending:
        """Record one layer; `pending` is what the layer before left, None in front of the first."""
        norm = f"layers.{layer}.input_layernorm.out"
        self._norm(weights.input_norm, norm, 2 * layer, pending)
        pending = self._attention(layer, weights)
        norm = f"layers.{layer}.post_attention_layernorm.out"
        self._norm(weights.post_attention_norm, norm, 2 * layer + 1, pending)
        return self._mlp(layer, weights)

    def record_end(self, pending: Pending) -> None:
        """Record how the sum that the last layer left joins the residual stream."""
        self._ops.before_norm(self.hidden, None if pending is None else pending.root)
        record.add(self.program, self.hidden, pending.root, pending.bias)
        self._ops.joined(pending.site, self.hidden, pending.bias)
        self._watch_sum(pending)

    def tables(self) -> dict[str, torch.Tensor]:
        """What was derived from the plan and the config, and recorded."""
        return {
            "head_to_kv": self._head_to_kv,
            "merges": self.merges,
            "cos": self._cos,
            "sin": self._sin,
        }

    def _make_buffers(self) -> None:
        hidden, make = self.spec.hidden_size, self.program.buffer
        queries, keys = self._heads[-1], self._kv[-1]
        self.hidden = make(hidden, torch.float32)
        self._h = make(hidden, self.dtype)
        self._qkv = [make(width, torch.float32) for width in (queries, keys, keys)]
        self._rotated, self._attended = make(queries, self.dtype), make(queries, self.dtype)
        self._gate, self._up = (make(self._wide[-1], torch.float32) for _ in range(2))
        self._inner = make(self._wide[-1], self.dtype)
        nodes = len(self.merges) - int(self.merges.sum())
        self._nodes = make(hidden, torch.float32, planes=nodes)
        self._root = self._nodes if self.plan.degree == 1 else make(hidden, torch.float32)

    def _norm(self, weight: torch.Tensor, site: str, index: int, pending: Pending | None) -> None:
        program, eps = self.program, self.spec.norm_eps
        self._ops.before_norm(self.hidden, None if pending is None else pending.root)
        if pending is None:
            record.rms_norm(program, self.hidden, weight, eps, self._h)
        else:
            record.rms_norm(
                program, self.hidden, weight, eps, self._h, add=pending.root, bias=pending.bias
            )
            self._ops.joined(pending.site, self.hidden, pending.bias)
            self._watch_sum(pending)
        self._ops.norm(site, self.hidden, weight, eps, self._h)
        self._watch(site, self._h)
        record_rows.last_row(program, self._h, self.normed[index])

    def _attention(self, layer: int, weights: LayerWeights) -> Pending:
        site, cache = f"layers.{layer}.self_attn.", self.caches[layer]
        self._columns(layer, weights, ("q", "k", "v"), self._qkv)
        q, k, v = self._qkv
        self._watch_columns(site + "q_proj.out", q, self._query_parts)
        self._watch_columns(site + "k_proj.out", k, self._key_parts)
        self._watch_columns(site + "v_proj.out", v, self._key_parts)
        record.rope_and_cache(
            self.program,
            q,
            k,
            v,
            self._rotated,
            cos=self._cos,
            sin=self._sin,
            cache=cache,
            q_norm=weights.q_norm,
            k_norm=weights.k_norm,
            eps=self.spec.norm_eps,
        )
        self._ops.rope(
            site + "q_rope", q, self._rotated, (self._cos, self._sin), weights.q_norm, self.spec
        )
        self._watch_columns(site + "q_rope.out", self._rotated, self._query_parts)
        self._watch_keys(site + "k_rope.out", cache)
        record.attention(
            self.program,
            self._rotated,
            cache,
            self._attended,
            head_to_kv=self._head_to_kv,
            scale=self.spec.head_size**-0.5,
            window=self.spec.windows[layer],
        )
        out = self._attended
        self._ops.attention(
            site + "attn", self._rotated, cache, out, self._head_to_kv, self.spec.windows[layer]
        )
        self._watch_columns(site + "o_proj.in", out, self._query_parts)
        return self._row(layer, weights, "o", out)

    def _mlp(self, layer: int, weights: LayerWeights) -> Pending:
        site = f"layers.{layer}.mlp."
        self._columns(layer, weights, ("gate", "up"), (self._gate, self._up))
        self._watch_columns(site + "gate_proj.out", self._gate, self._wide_parts)
        self._watch_columns(site + "up_proj.out", self._up, self._wide_parts)
        record.silu_mul(self.program, self._gate, self._up, self._inner)
        self._ops.silu_mul(site + "silu_mul", self._gate, self._up, self._inner)
        self._watch_columns(site + "down_proj.in", self._inner, self._wide_parts)
        return self._row(layer, weights, "down", self._inner)

    def _columns(
        self, layer: int, weights: LayerWeights, names: Sequence[str], outs: Sequence[Buffer]
    ) -> None:
        products = [weights.products[name] for name in names]
        biases = [weights.biases[name] for name in names]
        record.linear(self.program, self._h, products, outs, biases=biases)
        for name, product, out, bias in zip(names, products, outs, biases, strict=True):
            self._check_product(product_name(layer, name), product, self._h, out, bias)

    def _row(self, layer: int, weights: LayerWeights, name: str, x: Buffer) -> Pending:
        """Bias is added once, after the root of the tree, where the root joins the residual."""
        product, site = weights.products[name], product_name(layer, name)
        record.linear(self.program, x, [product], [self._nodes], merges=self.merges)
        traced = self.tracer.wants(site + ".partial")
        if traced or self.products is not None:
            atoms = self.program.buffer(product.n, torch.float32, planes=product.segments)
            record.linear(self.program, x, [product], [atoms])
            if traced:
                self.program.call(lambda: self._trace_partials(site + ".partial", atoms))
            self._check_product(site, product, x, atoms, None)
            self._check_tree(site, atoms)
        if self.plan.degree > 1:
            record_all_reduce(
                self.program, self.collectives, self._nodes, self._root, site + ".out"
            )
        residual = site.rpartition(".")[0] + ".residual"
        bias = weights.biases[name]
        return Pending(root=self._root, bias=bias, site=site + ".out", residual=residual)

    def _check_product(
        self, site: str, product: PackedWeight, x: Buffer, out: Buffer, bias: torch.Tensor | None
    ) -> None:
        if (checks := self.products) is not None:
            planes = self.program.planes_of
            self.program.call(
                lambda: checks.product(site, product, planes(x)[0], planes(out), bias)
            )

    def _check_tree(self, site: str, atoms: Buffer) -> None:
        if (checks := self.products) is not None:
            planes, nodes = self.program.planes_of, self._nodes
            self.program.call(lambda: checks.tree(site, planes(atoms), planes(nodes)))

    def _watch(self, site: str, buffer: Buffer) -> None:
        if self.tracer.wants(site):
            rows_of, trace = self.program.rows_of, self.tracer.whole
            self.program.call(lambda: trace(site, rows_of(buffer).cpu(), sampled=buffer.sampled))

    def _watch_sum(self, pending: Pending) -> None:
        self._watch(pending.site, pending.root)
        self._watch(pending.residual, self.hidden)

    def _watch_columns(self, site: str, buffer: Buffer, parts: Parts) -> None:
        if self.tracer.wants(site):
            rows_of, trace = self.program.rows_of, self.tracer.columns
            self.program.call(
                lambda: trace(site, rows_of(buffer).cpu(), parts, sampled=buffer.sampled)
            )

    def _watch_keys(self, site: str, cache: KVCache) -> None:
        """Keys exist with their positions turned in nowhere but in the cache."""
        if self.tracer.wants(site):
            self.program.call(
                lambda: self.tracer.columns(
                    site, cache.keys_at(self.program.step.slots).cpu(), self._key_parts
                )
            )

    def _trace_partials(self, site: str, atoms: Buffer) -> None:
        self.tracer.partials(site, self.program.planes_of(atoms).cpu(), self._first_atom)
