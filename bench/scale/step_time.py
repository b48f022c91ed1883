"""How long a step takes: products and attention by bytes and operations, then the messages.

    busy      max(bytes read / (read_gb_s * read_share), operations / (tflop_s * flop_share))
    bytes     weights of the rank but the embedding table, and the KV cache of every sequence, once
    operations  2 * rows * weights, 2 * sampled * head, 4 * layers * q features * (row, key) pairs
    step      step_us + busy of the slowest rank + launches * kernel_us + messages

Tensor parallel only: all ranks work on every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from isobit.shard.estimate.memory import MemoryModel, RankMemory
from isobit.shard.estimate.traffic import Traffic
from isobit.shard.plan.modules import feature_slice
from isobit.shard.plan.plan import ShardPlan

from .collective_time import CollectiveTime, Wires, collective_time
from .machines import Assumptions, Card


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step does. `keys`: tokens in the caches of all its sequences, its own rows included.

    `pairs`: how many (row, key) pairs attention looks at.
    """

    rows: int
    sampled: int
    keys: int
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A decode step of `batch` sequences of `context` tokens, or the prefill of one prompt."""

    name: str
    batch: int
    context: int
    prefill: bool = False

    def steps(self, step_rows: int) -> list[Step]:
        """One decode step, or the pieces of a prefill: `step_rows` rows at most, one sampled."""
        if not self.prefill:
            keys = self.batch * self.context
            return [Step(rows=self.batch, sampled=self.batch, keys=keys, pairs=keys)]
        steps = []
        for begin in range(0, self.context, step_rows):
            end = min(begin + step_rows, self.context)
            rows = end - begin
            pairs = rows * begin + rows * (rows + 1) // 2
            last = int(end == self.context)
            steps.append(Step(rows=rows, sampled=last, keys=end, pairs=pairs))
        return steps


@dataclass(frozen=True, kw_only=True)
class RankWork:
    """What a rank has to read and to multiply. Weights in elements, as packed: padding included."""

    weight_bytes: int
    kv_per_token: int
    layer_weights: int
    head_weights: int
    pair_operations: int

    def busy(self, step: Step, card: Card, assumed: Assumptions) -> float:
        """Seconds of one step's products and attention."""
        read = self.weight_bytes + self.kv_per_token * step.keys
        operations = 2 * (step.rows * self.layer_weights + step.sampled * self.head_weights)
        operations += self.pair_operations * step.pairs
        return max(
            read / (card.read_gb_s * 1e9 * card.read_share),
            operations / (card.tflop_s * 1e12 * assumed.flop_share),
        )


def rank_work(model: MemoryModel, plan: ShardPlan, memory: RankMemory) -> RankWork:
    """The work of one rank of a plan, from the same records as `isobit plan`."""
    rank = memory.rank
    head = model.head
    weights = 0
    for product in model.products:
        module = product.module
        kept = module.n if module.parallel == "row" else module.k
        weights += product.layers * kept * feature_slice(plan, module, rank).size
    features = plan.heads.slice(plan.owned(rank)).size * plan.head_size
    head_bytes = head.on_rank(plan, rank, padded=True).total
    return RankWork(
        weight_bytes=memory.weights.total - memory.weights.embeddings + head_bytes,
        kv_per_token=memory.kv_per_token,
        layer_weights=weights,
        head_weights=head.module.k * feature_slice(plan, head.module, rank).size,
        pair_operations=4 * model.spec.layers * features,
    )


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds, by what they go to; `total` has the collectives that are chosen, `total_gather` the
    library's."""

    fixed: float
    kernels: float
    busy: float
    collectives: CollectiveTime

    @property
    def total(self) -> float:
        return self.fixed + self.kernels + self.busy + self.collectives.chosen

    @property
    def total_gather(self) -> float:
        return self.fixed + self.kernels + self.busy + self.collectives.gather


def step_time(
    works: list[RankWork],
    traffic: Traffic,
    card: Card,
    wires: Wires,
    steps: list[Step],
    launches: int,
) -> StepTime:
    """All `steps` one after the other, with `launches` in all; the ranks wait for the slowest one
    at every sum."""
    assumed = wires.assumed
    messages = [collective_time(wires, traffic, s.rows, s.sampled) for s in steps]
    return StepTime(
        fixed=len(steps) * assumed.step_us * 1e-6,
        kernels=launches * assumed.kernel_us * 1e-6,
        busy=sum(max(work.busy(s, card, assumed) for work in works) for s in steps),
        collectives=CollectiveTime(
            gather=sum(m.gather for m in messages),
            chosen=sum(m.chosen for m in messages),
        ),
    )
