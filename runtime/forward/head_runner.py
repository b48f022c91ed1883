"""The end of a model on its own, beside LayerRunner: the residual stream in, logits out."""

from __future__ import annotations

import torch

from ...kernels.step.kv_cache import KVCache
from ...kernels.step.step import Step
from ...shard.checkpoint.checkpoint import Checkpoint
from ...shard.load.load import RankWeights, load_head
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ..collectives.gather import GatherCollectives
from ..scheduler.kv_pages import pages_for
from ..trace.tracer import Tracer
from .forward_pass import ForwardPass


class HeadRunner(ForwardPass):
    """The end of a forward pass: final norm and head, over rows of the residual stream."""

    def __init__(self, spec: ModelSpec, plan: ShardPlan, weights: RankWeights) -> None:
        dtype = spec.torch_dtype
        self._rows = torch.empty(0)
        pages = pages_for(spec.max_positions)
        # No op here looks into the cache; it says how many positions a step may have.
        cache = KVCache.allocate(pages, 0, spec.head_size, dtype)
        gather = GatherCollectives(plan, 0)
        super().__init__(spec, plan, 0, weights, [cache], gather, Tracer(None), dtype)

    def _record(self) -> None:
        self.program.call(lambda: self._enter())
        self._logits()

    def run(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits float32 [L, V] of rows float32 [L, hidden]; good until the next run."""
        self._rows, places = rows, torch.arange(len(rows))
        self.program.run(
            Step(
                tokens=torch.zeros(len(rows), dtype=torch.int64),
                positions=places.int(),
                slots=places,
                sequence=torch.zeros(len(rows), dtype=torch.int32),
                block_tables=torch.arange(pages_for(len(rows)), dtype=torch.int32)[None],
                sampled=places,
            )
        )
        return self.program.rows_of(self.logits)

    def _enter(self) -> None:
        self.program.rows_of(self.hidden).copy_(self._rows)


def open_head(checkpoint: Checkpoint, spec: ModelSpec, plan: ShardPlan) -> HeadRunner:
    """Read final norm and head, in the dtype of the model; `plan` is of degree 1."""
    head, norm = load_head(checkpoint, spec, plan, 0, spec.torch_dtype)
    weights = RankWeights(layers=[], embedding=None, head=head, final_norm=norm, bytes_read=0)
    return HeadRunner(spec, plan, weights)
