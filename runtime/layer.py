"""Recording the ops of a layer: norms, attention, MLP, and the buffers that layers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..kernels import record, record_rows
from ..kernels.cache import KVCache
from ..kernels.layout import PackedWeight
from ..kernels.program import Buffer, Program
from ..kernels.step import StepLimits
from ..shard.load import LayerWeights
from ..shard.plan import ShardPlan
from ..shard.rotary import rotary_tables
from ..shard.spec import ModelSpec
from .collectives.interface import Collectives
from .collectives.recorded import record_all_reduce
from .collectives.tree import subtree_merges
from .doctor.op_check import OpCheck
from .product_check import ProductCheck, product_name
from .trace import Tracer


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The root of a sum over atoms that has not yet joined the residual stream."""

    root: Buffer
    bias: torch.Tensor | None
    site: str


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
    ) -> None:
        self.spec, self.plan, self.rank, self.dtype = spec, plan, rank, dtype
        self.caches = caches
        self.collectives, self.tracer, self.products = collectives, tracer, products
        self._ops = products if isinstance(products, OpCheck) else None
        limits = StepLimits(
            vocabulary=spec.vocab_size, positions=spec.max_positions, pages=caches[0].pages
        )
        self.program = Program(limits)
        self._cos, self._sin = rotary_tables(spec.rotary, spec.head_size, spec.max_positions)
        self._head_to_kv = torch.tensor(plan.head_to_kv(rank), dtype=torch.int32)
        owned, kept = plan.owned(rank), plan.kv_heads(rank)
        self.merges = torch.tensor(subtree_merges(plan.atoms, owned), dtype=torch.int32)
        self._first_atom, self._first_kv = owned.start, kept.start
        self._heads = plan.heads.owned_ends(owned, spec.head_size)
        self._wide = plan.intermediate.owned_ends(owned)
        self._kv = [i * spec.head_size for i in range(len(kept) + 1)]
        self.normed = torch.empty(2 * spec.layers, spec.hidden_size, dtype=dtype)
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
        self._before_norm(pending)
        record.add(self.program, self.hidden, pending.root, pending.bias)
        self._check_joined(pending)
        self._watch(pending.site, pending.root)

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
        self._before_norm(pending)
        if pending is None:
            record.rms_norm(program, self.hidden, weight, eps, self._h)
        else:
            record.rms_norm(
                program, self.hidden, weight, eps, self._h, add=pending.root, bias=pending.bias
            )
            self._check_joined(pending)
            self._watch(pending.site, pending.root)
        self._check_norm(site, self.hidden, weight, self._h)
        self._watch(site, self._h)
        record_rows.last_row(program, self._h, self.normed[index])

    def _attention(self, layer: int, weights: LayerWeights) -> Pending:
        site, cache = f"layers.{layer}.self_attn.", self.caches[layer]
        self._columns(layer, weights, ("q", "k", "v"), self._qkv)
        q, k, v = self._qkv
        self._watch_columns(site + "q_proj.out", q, "atom", self._first_atom, self._heads)
        self._watch_columns(site + "k_proj.out", k, "kv head", self._first_kv, self._kv)
        self._watch_columns(site + "v_proj.out", v, "kv head", self._first_kv, self._kv)
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
        self._check_rope(site + "rope", layer, weights.q_norm)
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
        self._check_attention(site + "attn", layer)
        self._watch_columns(site + "attn.out", out, "atom", self._first_atom, self._heads)
        return self._row(layer, weights, "o", out)

    def _mlp(self, layer: int, weights: LayerWeights) -> Pending:
        site = f"layers.{layer}.mlp."
        self._columns(layer, weights, ("gate", "up"), (self._gate, self._up))
        first, ends = self._first_atom, self._wide
        self._watch_columns(site + "gate_proj.out", self._gate, "atom", first, ends)
        self._watch_columns(site + "up_proj.out", self._up, "atom", first, ends)
        record.silu_mul(self.program, self._gate, self._up, self._inner)
        self._check_silu_mul(site + "silu_mul")
        self._watch_columns(site + "down_proj.in", self._inner, "atom", first, ends)
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
        if self.tracer.enabled:
            atoms = self.program.buffer(product.n, torch.float32, planes=product.segments)
            record.linear(self.program, x, [product], [atoms])
            self.program.call(lambda: self._trace_partials(site + ".partial", atoms))
            self._check_product(site, product, x, atoms, None)
            self._check_tree(site, atoms)
        if self.plan.degree > 1:
            record_all_reduce(
                self.program, self.collectives, self._nodes, self._root, site + ".out"
            )
        return Pending(root=self._root, bias=weights.biases[name], site=site + ".out")

    def _check_product(
        self, site: str, product: PackedWeight, x: Buffer, out: Buffer, bias: torch.Tensor | None
    ) -> None:
        if (checks := self.products) is not None:
            planes = self.program.planes_of
            self.program.call(
                lambda: checks.product(site, product, planes(x)[0], planes(out), bias)
            )

    def _before_norm(self, pending: Pending | None) -> None:
        if (ops := self._ops) is not None:
            rows, root = self.program.rows_of, None if pending is None else pending.root
            self.program.call(
                lambda: ops.before_norm(rows(self.hidden), None if root is None else rows(root))
            )

    def _check_joined(self, pending: Pending) -> None:
        if (ops := self._ops) is not None:
            rows = self.program.rows_of
            self.program.call(lambda: ops.joined(pending.site, rows(self.hidden), pending.bias))

    def _check_norm(self, site: str, x: Buffer, weight: torch.Tensor, out: Buffer) -> None:
        if (ops := self._ops) is not None:
            rows, eps = self.program.rows_of, self.spec.norm_eps
            self.program.call(lambda: ops.norm(site, rows(x), weight, eps, rows(out)))

    def _check_rope(self, site: str, layer: int, norm: torch.Tensor | None) -> None:
        if (ops := self._ops) is not None:
            rows, q, out = self.program.rows_of, self._qkv[0], self._rotated
            tables, head = (self._cos, self._sin), self.spec.head_size
            by = norm, self.spec.norm_eps
            self.program.call(
                lambda: ops.rope(site, rows(q), rows(out), tables, by, self.program.step, head)
            )

    def _check_attention(self, site: str, layer: int) -> None:
        if (ops := self._ops) is not None:
            rows, cache = self.program.rows_of, self.caches[layer]
            scale, window = self.spec.head_size**-0.5, self.spec.windows[layer]
            q, out = self._rotated, self._attended
            self.program.call(
                lambda: ops.attention(
                    site, rows(q), cache, rows(out), self.program.step, scale, window
                )
            )

    def _check_silu_mul(self, site: str) -> None:
        if (ops := self._ops) is not None:
            rows, gate, up, out = self.program.rows_of, self._gate, self._up, self._inner
            self.program.call(lambda: ops.silu_mul(site, rows(gate), rows(up), rows(out)))

    def _check_tree(self, site: str, atoms: Buffer) -> None:
        if (checks := self.products) is not None:
            planes, nodes = self.program.planes_of, self._nodes
            self.program.call(lambda: checks.tree(site, planes(atoms), planes(nodes)))

    def _watch(self, site: str, buffer: Buffer) -> None:
        if self.tracer.enabled:
            rows_of = self.program.rows_of
            self.program.call(lambda: self.tracer.whole(site, rows_of(buffer)))

    def _watch_columns(
        self, site: str, buffer: Buffer, kind: str, first: int, ends: Sequence[int]
    ) -> None:
        if self.tracer.enabled:
            rows_of = self.program.rows_of
            self.program.call(lambda: self.tracer.columns(site, rows_of(buffer), kind, first, ends))

    def _trace_partials(self, site: str, atoms: Buffer) -> None:
        self.tracer.partials(site, self.program.planes_of(atoms), self._first_atom)
