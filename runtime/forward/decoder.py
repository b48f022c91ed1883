"""A rank's shard of a model with its KV cache, and the forward pass over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...kernels import ops
from ...kernels.device import HOST, AnyWeight, Device
from ...kernels.program.program import Program
from ...kernels.program.readout import Outcome
from ...kernels.step.step import Step
from ...shard.load.load import RankWeights
from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ..collectives.interface import Collectives
from ..selfcheck.op_check import OpCheck
from ..selfcheck.product_check import ProductCheck
from ..trace.tracer import Tracer
from .forward_pass import ForwardPass

if TYPE_CHECKING:
    from ...kernels.gpu.readout import StepOutcome


class Decoder:
    """One rank of a model. The residual stream is float32 throughout."""

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
        products: ProductCheck | OpCheck | None = None,
        device: Device[AnyWeight] = HOST,
    ) -> None:
        self.spec, self.plan, self.rank, self.dtype = spec, plan, rank, dtype
        self.weights, self.collectives, self.tracer = weights, collectives, tracer
        kept = plan.kv_heads(rank)
        self.caches = [
            ops.KVCache.allocate(
                kv_pages + device.spare_pages, len(kept), spec.head_size, dtype, device.device
            )
            for _ in range(spec.layers)
        ]
        self.products, self.device = products, device
        self._recorded: ForwardPass | None = None

    @property
    def recorded(self) -> ForwardPass:
        """The forward pass, recorded when it is first needed: what it is made of may change before.

        Raises InputError E-KERNEL-SHAPE when the parts of the model do not fit each other.
        """
        if self._recorded is None:
            self._recorded = ForwardPass(
                self.spec,
                self.plan,
                self.rank,
                self.weights,
                self.caches,
                self.collectives,
                self.tracer,
                self.dtype,
                self.products,
                self.device,
            )
        return self._recorded

    def forward(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one step.

        Returns the residual stream after the last layer, float32 [T, hidden], and the logits of
        the sampled rows, float32 [L, vocab]; both in full on every rank, until the next step.
        """
        program = self.recorded.program
        program.run(step)
        return program.rows_of(self.recorded.hidden), program.rows_of(self.recorded.logits)

    def prepare(self) -> int:
        """Have a card compile every kernel that a step can start; returns how many there are."""
        program = self.recorded.program
        return 0 if isinstance(program, Program) else program.prepare()

    def outcome(self, hidden: torch.Tensor, logits: torch.Tensor) -> StepOutcome | Outcome:
        """What reads tokens and digests of the step of which `forward` gave these."""
        recorded = self.recorded
        program = recorded.program
        own = program.rows_of(recorded.hidden), program.rows_of(recorded.logits)
        if isinstance(program, Program) or hidden is not own[0] or logits is not own[1]:
            return Outcome((hidden, *self.normed()), logits)
        return program.outcome(hidden, logits)

    def normed(self) -> list[torch.Tensor]:
        """Samples of what every rank normalized alike in the last step, for comparing ranks.

        A norm that differs on one rank changes that rank's part of a sum, and the sum is equal on
        all ranks again: the residual stream cannot tell. Returns the last row behind each layer's
        norms [2 * layers, hidden], and every row behind the final norm.
        """
        return [self.recorded.normed, self.recorded.program.rows_of(self.recorded.last)]
