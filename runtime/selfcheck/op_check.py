"""Every operation of a rank's forward pass against the reference in plain torch, on real inputs.

The first and the last row of each step are looked at. The reference uses the weights that the rank
holds, read to the extent that the file says: a difference is the kernel's, whatever the weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...kernels import reference
from ...kernels.step.kv_cache import PAGE, KVCache
from ...kernels.step.step import Step
from ...kernels.weights.layout import TILE, PackedWeight
from ...shard.load.load import LayerWeights
from ...shard.plan.plan import ShardPlan
from ..collectives.tree import sum_subtrees
from .product_check import (
    MOST_ROUNDINGS,
    ROUNDING,
    SAMPLED_TILES,
    Checksum,
    checksum,
    product_name,
    some_columns,
)

SLACK = 1e-4
"""Of the largest element: what fp32 in another order of additions may differ by, and more."""
MOST_INPUT = 1e12
"""Squares and products of larger inputs leave fp32, but not the reference: nothing is compared."""


class OpCheck:
    """Collects what is wrong, the first time for each operation."""

    def __init__(self, plan: ShardPlan, rank: int) -> None:
        self._owned, self._atoms = plan.owned(rank), plan.atoms
        self._layouts: dict[str, PackedWeight] = {}
        self._known: dict[str, tuple[PackedWeight, Checksum]] = {}
        self._before = torch.empty(0)
        self._root = torch.empty(0)
        self._found: dict[tuple[str, str], dict[str, Any]] = {}

    def learn(self, layer: int, wanted: LayerWeights) -> None:
        """Take the extents of a layer's weights from what was read from the file."""
        for name, weight in wanted.products.items():
            self._layouts[product_name(layer, name)] = _without_data(weight)

    def learn_head(self, wanted: PackedWeight) -> None:
        self._layouts["lm_head"] = _without_data(wanted)

    def take(self) -> list[dict[str, Any]]:
        """What was wrong since the last call."""
        found, self._found = list(self._found.values()), {}
        return found

    def product(
        self,
        name: str,
        weight: PackedWeight,
        x: torch.Tensor,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        """x [T, K] times a weight: out fp32 [S, T, N], bias included."""
        if not len(x) or not weight.n:
            return
        if name not in self._known:
            clean = self._extended(name, weight)
            self._known[name] = clean, checksum(clean)
        for row in {0, len(x) - 1}:
            inputs, results = x[row : row + 1], out[:, row, : weight.n].double()
            if _sane(inputs):
                self._sums(name, inputs, results - (0 if bias is None else bias.double()))

    def tree(self, name: str, partials: torch.Tensor, nodes: torch.Tensor) -> None:
        """Nodes [nodes, T, N] against the subtrees of partials [A, T, N], bit by bit."""
        wanted = torch.stack(sum_subtrees(partials, self._owned, self._atoms))
        differ = (wanted.view(torch.int32) != nodes.contiguous().view(torch.int32)).nonzero()
        if not len(differ):
            return
        # Another order of additions changes the last bits; anything more is a wrong product.
        limit = MOST_ROUNDINGS * ROUNDING * partials.abs().sum(0).max()
        off = (nodes - wanted).abs()
        place = tuple(differ[0].tolist())
        if not (off.max() <= limit):
            place = tuple((~(off <= limit)).nonzero()[0].tolist())
        kind = "tree" if off.max() <= limit else "product"
        self._add(name, kind, float(nodes[place]), float(wanted[place]), float(limit), None)

    def before_norm(self, hidden: torch.Tensor, root: torch.Tensor | None) -> None:
        """Keep the residual stream [T, H] and the sum that is to join it."""
        self._before = hidden.clone()
        self._root = torch.zeros_like(hidden) if root is None else root.clone()

    def joined(self, name: str, hidden: torch.Tensor, bias: torch.Tensor | None) -> None:
        """The residual stream after the sum and its bias have joined it, bit by bit."""
        added = self._root if bias is None else self._root + bias
        self._compare(name, "residual", hidden, (self._before + added).double(), exact=True)

    def norm(
        self, name: str, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """x fp32 [T, H] normalized to out [T, H]."""
        if _sane(x):
            self._compare(name, "rms_norm", out, reference.rms_norm(x, weight, eps))

    def silu_mul(self, name: str, gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> None:
        """gate and up fp32 [T, I] to out [T, I]."""
        rows = _ends(len(out))
        width = out.shape[1]
        if _sane(gate) and _sane(up):
            wanted = reference.silu_mul(gate[rows, :width], up[rows, :width])
            self._compare(name, "silu_mul", out[rows], wanted)

    def rope(
        self,
        name: str,
        q: torch.Tensor,
        rotated: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        norm: tuple[torch.Tensor | None, float],
        step: Step,
        head: int,
    ) -> None:
        """Queries q fp32 [T, Hq * D] to `rotated` [T, Hq * D], after their norm if there is one."""
        if not q.numel() or not _sane(q):
            return
        rows = _ends(len(q))
        heads = q[rows].view(len(rows), -1, head).double()
        weight, eps = norm
        if weight is not None:
            heads = reference.rms_norm(heads, weight, eps)
        wanted = reference.rope(heads, *tables, step.positions[rows]).flatten(1)
        self._compare(name, "rope", rotated[rows], wanted)

    def attention(
        self,
        name: str,
        q: torch.Tensor,
        cache: KVCache,
        out: torch.Tensor,
        step: Step,
        head_to_kv: torch.Tensor,
        window: int,
    ) -> None:
        """q [T, Hq * D] over the cache to out, as ops.attention."""
        if not q.numel() or not _sane(q):
            return
        rows = _ends(len(q))
        wanted = reference.attention(
            q[rows].view(len(rows), -1, cache.head_size),
            cache,
            block_tables=step.block_tables,
            row_sequence=step.sequence[rows],
            positions=step.positions[rows],
            head_to_kv=head_to_kv,
            scale=cache.head_size**-0.5,
            window=window,
        )
        # What rounding does to a score, its exponential does to the result.
        queries = q[rows].view(len(rows), -1, cache.head_size).float().norm(dim=2).max()
        scores = float(queries) * _longest_key(cache, step, rows) * cache.head_size**-0.5
        slack = SLACK + MOST_ROUNDINGS * ROUNDING * scores
        self._compare(name, "attention", out[rows], wanted, slack)

    def _extended(self, name: str, weight: PackedWeight) -> PackedWeight:
        """The weight with the extent that the file gives it."""
        if (layout := self._layouts.get(name)) is None:
            return weight
        return dataclasses.replace(
            weight, run_offsets=layout.run_offsets, segment_offsets=layout.segment_offsets
        )

    def _sums(self, name: str, row: torch.Tensor, results: torch.Tensor) -> None:
        """All outputs by their sum (see product_check), those of some tiles one by one."""
        weight, known = self._known[name]
        inputs = reference.activations(row, weight)
        wanted = known.by_segment(inputs * known.sums)
        energy = known.by_segment(inputs.square() * known.squares)
        count = known.by_segment(torch.ones_like(inputs))
        limit = MOST_ROUNDINGS * ROUNDING * (count * energy).sqrt()
        self._outputs(name, "product", results.sum(1)[:, None], wanted[:, None], limit[:, None])
        tiles = weight.tiles
        for first in {0, max(0, tiles - SAMPLED_TILES)}:
            sample = some_columns(weight, first, SAMPLED_TILES)
            terms = reference.dense(sample)[0] * inputs
            limit = MOST_ROUNDINGS * ROUNDING
            limit = limit * (count[:, None] * known.by_segment(terms.square()).T).sqrt()
            columns = slice(first * TILE, first * TILE + sample.n)
            wanted = known.by_segment(terms).T
            self._outputs(name, "product", results[:, columns], wanted, limit)

    def _outputs(
        self,
        name: str,
        kind: str,
        results: torch.Tensor,
        wanted: torch.Tensor,
        limit: torch.Tensor,
    ) -> None:
        """Compare [S, outputs] of the segments of a weight."""
        wrong = (~((results - wanted).abs() <= limit)).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            atom = self._owned.start + place[0] if len(results) > 1 else None
            self._add(
                name, kind, float(results[place]), float(wanted[place]), float(limit[place]), atom
            )

    def _compare(
        self,
        name: str,
        kind: str,
        found: torch.Tensor,
        wanted: torch.Tensor,
        slack: float = SLACK,
        exact: bool = False,
    ) -> None:
        """Compare with float64 values; those that do not fit the dtype count as its infinity."""
        if not wanted.numel() or not wanted.isfinite().all():
            return
        limits = torch.finfo(found.dtype)
        rounded = wanted.clamp(-float(limits.max), float(limits.max))
        limit = limits.eps * rounded.abs() + slack * rounded.abs().max()
        if exact:
            limit = torch.zeros_like(rounded)
        overflowed = found.isinf() & (wanted.abs() > limits.max * (1 - limits.eps))
        wrong = (~((found.double() - rounded).abs() <= limit) & ~overflowed).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            self._add(
                name, kind, float(found[place]), float(wanted[place]), float(limit[place]), None
            )

    def _add(
        self, name: str, kind: str, found: float, wanted: float, limit: float, atom: int | None
    ) -> None:
        record = {
            "op": name,
            "kind": kind,
            "found": found,
            "wanted": wanted,
            "limit": limit,
            "atom": atom,
        }
        self._found.setdefault((name, kind), record)


def _sane(inputs: torch.Tensor) -> bool:
    """Whether all inputs are finite and of a size that fp32 can work with."""
    return not inputs.numel() or bool(inputs.abs().max() < MOST_INPUT)


def _longest_key(cache: KVCache, step: Step, rows: torch.Tensor) -> float:
    """The length of the longest key that some rows may read; unused slots hold anything."""
    longest = 0.0
    for row in rows.tolist():
        index = torch.arange(int(step.positions[row]) + 1)
        pages = step.block_tables[int(step.sequence[row])].long()[index // PAGE]
        keys = cache.keys[pages, :, :, index % PAGE].float()
        longest = max(longest, float(keys.norm(dim=2).max()))
    return longest


def _ends(rows: int) -> torch.Tensor:
    """The first and the last of some rows."""
    return torch.tensor(sorted({0, rows - 1}))


def _without_data(weight: PackedWeight) -> PackedWeight:
    """The extent of a weight without the memory of its elements."""
    return dataclasses.replace(
        weight,
        n=0,
        data=weight.data[:0].clone(),
        scales=None if weight.scales is None else weight.scales[:0].clone(),
        zeros=None if weight.zeros is None else weight.zeros[:0].clone(),
    )
