"""Products against what their weights said when they were loaded: `--check full`.

The outputs of a product add up to the activations times the column sums of its weight (Huang and
Abraham, "Algorithm-Based Fault Tolerance for Matrix Operations", 1984). In fp32 the two sides
differ by rounding, which grows with the square root of the number of terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ...kernels import reference
from ...kernels.weights.layout import TILE, PackedWeight
from ...shard.load.load import RankWeights
from ..collectives.tree import sum_subtrees

ROUNDING = 2.0**-24
MOST_ROUNDINGS = 64.0
"""How many standard deviations of the rounding a sum may be off."""
SAMPLED_TILES = 1
CHUNK_TILES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checksum:
    """Of a weight `[N, K]`: sums and sums of squares over N, float64 `[K]`; each k's segment."""

    sums: torch.Tensor
    squares: torch.Tensor
    segment_of: torch.Tensor
    segments: int

    def by_segment(self, terms: torch.Tensor) -> torch.Tensor:
        """Add up float64 terms `[..., K]` within each segment: `[..., S]`."""
        inside = self.segment_of >= 0
        out = terms.new_zeros(*terms.shape[:-1], self.segments)
        return out.index_add_(-1, self.segment_of[inside], terms[..., inside])


def some_columns(weight: PackedWeight, first: int, count: int) -> PackedWeight:
    """The outputs of `count` tiles of 64, from tile `first`; shares memory with `weight`."""
    tiles = slice(first, min(first + count, weight.tiles))
    return dataclasses.replace(
        weight,
        n=min(tiles.stop * TILE, weight.n) - first * TILE,
        data=weight.data[tiles],
        scales=None if weight.scales is None else weight.scales[tiles],
        zeros=None if weight.zeros is None else weight.zeros[tiles],
    )


def checksum(weight: PackedWeight) -> Checksum:
    """Read a weight once, some tiles at a time."""
    sums, squares = (torch.zeros(weight.k, dtype=torch.float64) for _ in range(2))
    segment_of = torch.full((weight.k,), -1)
    for first in range(0, weight.tiles, CHUNK_TILES):
        values, segment_of = reference.dense(some_columns(weight, first, CHUNK_TILES))
        sums += values.sum(dim=0)
        squares += values.square().sum(dim=0)
    return Checksum(sums=sums, squares=squares, segment_of=segment_of, segments=weight.segments)


class ProductCheck:
    """Watches the products of one rank; what is wrong is found in `take`."""

    def __init__(self, weights: RankWeights, atoms: int, owned: range) -> None:
        """Compute the checksums of every product: seconds for each billion weights."""
        self._known = {name: checksum(weight) for name, weight in _products(weights)}
        self._atoms, self._owned = atoms, owned
        self._findings: list[str] = []
        self._turn, self._seen = 0, 0

    def take(self) -> list[str]:
        """What was wrong in the step that is over; the next step samples the next product."""
        findings, self._findings = self._findings, []
        self._turn = (self._turn + 1) % len(self._known)
        self._seen = 0
        return findings

    def product(
        self,
        name: str,
        weight: PackedWeight,
        x: torch.Tensor,
        out: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> None:
        """Check the last row of x `[T, K]` times a weight: out fp32 `[S, T, N]`, bias included."""
        if not len(x) or not weight.n:
            return
        row, results = x[-1:], out[:, -1, : weight.n].double()
        if bias is not None:
            results = results - bias.double()
        self._compare_sums(name, weight, row, results)
        if self._seen == self._turn:
            self._compare_columns(name, weight, row, results)
        self._seen += 1

    def tree(self, name: str, partials: torch.Tensor, nodes: torch.Tensor) -> None:
        """Check that nodes `[nodes, T, N]` are the subtrees of partials `[A, T, N]`, bit by bit."""
        wanted = torch.stack(sum_subtrees(partials, self._owned, self._atoms))
        if not torch.equal(wanted.view(torch.int32), nodes.view(torch.int32)):
            self._findings.append(f"{name}: atoms were not added along the tree")

    def _compare_sums(
        self, name: str, weight: PackedWeight, row: torch.Tensor, results: torch.Tensor
    ) -> None:
        known, inputs = self._known[name], reference.activations(row, weight)
        wanted = known.by_segment(inputs * known.sums)
        energy = known.by_segment(inputs.square() * known.squares)
        rounding = ROUNDING * (known.by_segment(torch.ones_like(inputs)) * energy).sqrt()
        off = (results.sum(dim=1) - wanted).abs()
        # Not "greater than": a NaN is wrong as well.
        wrong = ~(off <= MOST_ROUNDINGS * rounding)
        for segment in wrong.nonzero().flatten().tolist():
            where = f", atom {self._owned.start + segment}" if weight.segments > 1 else ""
            self._findings.append(
                f"{name}{where}: the outputs add up to {float(results[segment].sum()):.6g}, by the "
                f"weights as loaded they should to {float(wanted[segment]):.6g} "
                f"({float(off[segment] / rounding[segment]):.0f} times the rounding)"
            )

    def _compare_columns(
        self, name: str, weight: PackedWeight, row: torch.Tensor, results: torch.Tensor
    ) -> None:
        known, sample = self._known[name], some_columns(weight, 0, SAMPLED_TILES)
        terms = reference.dense(sample)[0] * reference.activations(row, weight)
        wanted = known.by_segment(terms).T
        count = known.by_segment(torch.ones_like(known.sums))[:, None]
        rounding = ROUNDING * (count * known.by_segment(terms.square()).T).sqrt()
        off = (results[:, : sample.n] - wanted).abs()
        for segment, column in (~(off <= MOST_ROUNDINGS * rounding)).nonzero()[:1].tolist():
            self._findings.append(
                f"{name}: output {column} is {float(results[segment, column]):.6g}, the reference "
                f"in float64 gives {float(wanted[segment, column]):.6g}"
            )


def _products(weights: RankWeights) -> Iterator[tuple[str, PackedWeight]]:
    for layer, held in enumerate(weights.layers):
        for name, product in held.products.items():
            yield product_name(layer, name), product
    yield "lm_head", weights.head


def product_name(layer: int, name: str) -> str:
    """layers.3.mlp.down_proj for "down" of layer 3."""
    part = "self_attn" if name in ("q", "k", "v", "o") else "mlp"
    return f"layers.{layer}.{part}.{name}_proj"
