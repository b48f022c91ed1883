"""One layer of a model on its own, with a look at what its products are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from ...kernels.step.buffer import Buffer
from ...kernels.step.kv_cache import KVCache
from ...kernels.step.step import Step
from ...shard.load.load import LayerWeights
from ...shard.model.spec import ModelSpec
from ...shard.plan.modules import feature_slice, layer_modules
from ...shard.plan.plan import ShardPlan
from ..collectives.interface import Collectives
from ..scheduler.kv_pages import pages_for
from ..trace.tracer import Tracer
from .layer import LayerRecorder, Pending

Look = Callable[[str, torch.Tensor], None]


class LayerRunner(LayerRecorder):
    """Runs a rank's shard of a layer over whole samples of `length` tokens, one after another.

    The same recorded ops as those of ForwardPass, so the same bits. `look(name, inputs)` sees the
    whole inputs [length, K] of the products that share them, gathered from all ranks, in the dtype
    of the run, by the short name of the first: q, o, gate, down. What follows overwrites them.
    Every rank of a group looks, or none.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: ShardPlan,
        rank: int,
        weights: LayerWeights,
        layer: int,
        dtype: torch.dtype,
        length: int,
        collectives: Collectives,
        look: Look | None = None,
    ) -> None:
        alone = dataclasses.replace(spec, layers=1, windows=(spec.windows[layer],))
        pages = pages_for(length)
        cache = KVCache.allocate(pages, len(plan.kv_heads(rank)), spec.head_size, dtype)
        self._look, self._modules = look, layer_modules(spec, layer)
        super().__init__(alone, plan, rank, [cache], collectives, Tracer(None), dtype)
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

    def close(self) -> None:
        """Let go of the weights at once."""
        self.program.close()

    def _enter(self) -> None:
        self.program.rows_of(self.hidden).copy_(self._residual)

    def _columns(
        self, layer: int, weights: LayerWeights, names: Sequence[str], outs: Sequence[Buffer]
    ) -> None:
        if (look := self._look) is not None:
            self.program.call(lambda: look(names[0], self.program.rows_of(self._h)))
        super()._columns(layer, weights, names, outs)

    def _row(self, layer: int, weights: LayerWeights, name: str, x: Buffer) -> Pending:
        if (look := self._look) is not None:
            self.program.call(lambda: look(name, self._whole(name, self.program.rows_of(x))))
        return super()._row(layer, weights, name, x)

    def _whole(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """All features [T, K] of a row-parallel product's input, given those of this rank."""
        plan, module = self.plan, self._modules[name]
        slices = [feature_slice(plan, module, rank) for rank in range(plan.degree)]
        if plan.degree == 1:
            return own[:, : slices[0].true]
        # Gathered tensors are of one size; what fills them up is not read.
        sent = own.new_zeros((len(own), max(each.size for each in slices)))
        sent[:, : own.shape[1]] = own
        gathered = sent.new_empty((plan.degree, *sent.shape))
        self.collectives.all_gather(sent, gathered, f"{module.name}.in")
        return torch.cat(
            [part[:, : each.true] for part, each in zip(gathered, slices, strict=True)], dim=1
        )
