"""One layer of a model on its own, with a look at what its products are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from ..kernels.cache import KVCache
from ..kernels.program import Buffer
from ..kernels.step import Step
from ..shard.load import LayerWeights
from ..shard.modules import layer_modules
from ..shard.plan import ShardPlan
from ..shard.spec import ModelSpec
from .batch import pages_for
from .collectives.gather import GatherCollectives
from .layer import LayerRecorder, Pending
from .trace import Tracer

Look = Callable[[str, torch.Tensor], None]


class LayerRunner(LayerRecorder):
    """Runs a layer over whole samples of `length` tokens, one after another, at degree 1.

    The same recorded ops as those of ForwardPass, so the same bits. `look(name, inputs)` sees the
    inputs [length, K] of the products that share them, in the dtype of the run, by the short name
    of the first: q, o, gate, down. They are overwritten by what follows.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: ShardPlan,
        weights: LayerWeights,
        layer: int,
        dtype: torch.dtype,
        length: int,
        look: Look | None = None,
    ) -> None:
        assert plan.degree == 1
        alone = dataclasses.replace(spec, layers=1, windows=(spec.windows[layer],))
        pages = pages_for(length)
        cache = KVCache.allocate(pages, len(plan.kv_heads(0)), spec.head_size, dtype)
        self._look, self._true = look, {n: m.k for n, m in layer_modules(spec, layer).items()}
        super().__init__(alone, plan, 0, [cache], GatherCollectives(plan, 0), Tracer(None), dtype)
        self._residual = torch.empty(0)
        rows = torch.arange(length)
        self._step = Step(
            tokens=torch.zeros(length, dtype=torch.int64),
            positions=rows.int(),
            slots=rows,
            sequence=torch.zeros(length, dtype=torch.int32),
            block_tables=torch.arange(pages, dtype=torch.int32)[None],
            sampled=torch.empty(0, dtype=torch.int64),
        )
        self.program.call(lambda: self._enter())
        self.record_end(self.record_layer(0, weights, None))

    def run(self, residual: torch.Tensor) -> torch.Tensor:
        """Return the residual stream behind the layer, given that before it: float32
        [length, hidden], both; what is returned is good until the next run."""
        self._residual = residual
        self.program.run(self._step)
        return self.program.rows_of(self.hidden)

    def _enter(self) -> None:
        self.program.rows_of(self.hidden).copy_(self._residual)

    def _columns(
        self, layer: int, weights: LayerWeights, names: Sequence[str], outs: Sequence[Buffer]
    ) -> None:
        self._show(names[0], self._h)
        super()._columns(layer, weights, names, outs)

    def _row(self, layer: int, weights: LayerWeights, name: str, x: Buffer) -> Pending:
        self._show(name, x)
        return super()._row(layer, weights, name, x)

    def _show(self, name: str, buffer: Buffer) -> None:
        if (look := self._look) is not None:
            true = self._true[name]
            self.program.call(lambda: look(name, self.program.rows_of(buffer)[:, :true]))
