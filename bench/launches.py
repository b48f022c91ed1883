"""How many kernels a step starts on a GPU, counted in the forward pass as it is recorded.

The rank of a plan is recorded over memory that is nowhere, and its launches are listed for a step
as `kernels.gpu.program` lists them for a card. A sum or a gather over ranks counts as one, which it
is where own kernels do it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch

from isobit.kernels.gpu.catalog import WeightForm, meta_weight
from isobit.kernels.gpu.device import Gpu
from isobit.kernels.gpu.launch import Launch
from isobit.kernels.gpu.weight import GpuWeight
from isobit.kernels.step.kv_cache import KVCache
from isobit.kernels.step.step import Step
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.forward.forward_pass import ForwardPass
from isobit.runtime.trace.tracer import Tracer
from isobit.shard.load.rank_weights import LayerWeights, RankWeights
from isobit.shard.model.spec import ModelSpec
from isobit.shard.plan.plan import ShardPlan

META = torch.device("meta")
POSITIONS = 4096
PAGES = 99


@dataclass(frozen=True)
class Launches:
    """Kernels of every layer, and of a step beside its layers."""

    layer: int
    rest: int

    def of(self, layers: int) -> int:
        """Kernels of a step of a model of so many layers."""
        return layers * self.layer + self.rest


class NoCard:
    """A card whose memory is nowhere."""

    device = META

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def upload(self, host: torch.Tensor, there: torch.Tensor) -> None:
        raise AssertionError("nothing runs here")

    def wait_for_upload(self) -> None:
        raise AssertionError("nothing runs here")

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError("nothing runs here")


def launches(spec: ModelSpec, plan: ShardPlan, rank: int, step: Step) -> Launches:
    """Kernels that a step starts on one rank, with int4 weights in groups of 128."""
    one, two = (sum(started(spec, plan, rank, step, layers).values()) for layers in (1, 2))
    return Launches(layer=two - one, rest=2 * one - two)


def started(spec: ModelSpec, plan: ShardPlan, rank: int, step: Step, layers: int) -> Counter[str]:
    """How often each kernel starts, by name, for a model cut to so many layers; "call" stands for
    what no kernel here does."""
    spec = dataclasses.replace(spec, layers=layers, max_positions=POSITIONS)
    caches = [
        KVCache.allocate(PAGES, len(plan.kv_heads(rank)), spec.head_size, torch.bfloat16, META)
        for _ in range(layers)
    ]
    recorded = ForwardPass(
        spec,
        plan,
        rank,
        meta_rank(spec, plan, rank),
        caches,
        GatherCollectives(plan, rank),
        Tracer(None),
        torch.bfloat16,
        device=Gpu(NoCard(), most_rows=step.rows, eager=True),
    )
    return Counter(
        item.kernel.__name__ if isinstance(item, Launch) else "call"
        for item in recorded.program.items(step)
    )


def decode_step(rows: int, context: int) -> Step:
    """A token each of `rows` sequences that have `context` tokens with it."""
    return Step(
        tokens=torch.zeros(rows, dtype=torch.int64),
        positions=torch.full((rows,), context - 1, dtype=torch.int32),
        slots=torch.zeros(rows, dtype=torch.int64),
        sequence=torch.arange(rows, dtype=torch.int32),
        block_tables=torch.zeros(rows, 1, dtype=torch.int32),
        sampled=torch.arange(rows),
    )


def prefill_step(rows: int, *, sampled: bool) -> Step:
    """A piece of one prompt, whose last row may be sampled."""
    return Step(
        tokens=torch.zeros(rows, dtype=torch.int64),
        positions=torch.arange(rows, dtype=torch.int32),
        slots=torch.zeros(rows, dtype=torch.int64),
        sequence=torch.zeros(rows, dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        sampled=torch.tensor([rows - 1] if sampled else [], dtype=torch.int64),
    )


def meta_rank(spec: ModelSpec, plan: ShardPlan, rank: int) -> RankWeights[GpuWeight]:
    """The weights of a rank, without memory."""
    owned = plan.owned(rank)
    hidden, head = spec.hidden_size, spec.head_size
    queries = plan.heads.slice(owned).size * head
    keys = len(plan.kv_heads(rank)) * head
    wide, own = plan.intermediate.slice(owned).size, plan.vocab.slice(owned)

    def weight(n: int, k: int, segments: int = 1, kind: str = "int4") -> GpuWeight:
        return meta_weight(WeightForm(kind=kind, group=128), n, k, segments)

    products = {
        "q": weight(queries, hidden),
        "k": weight(keys, hidden),
        "v": weight(keys, hidden),
        "o": weight(hidden, queries, len(owned)),
        "gate": weight(wide, hidden),
        "up": weight(wide, hidden),
        "down": weight(hidden, wide, len(owned)),
    }
    norm = torch.empty(hidden, device=META)
    layer = LayerWeights(
        products=products,
        biases=dict.fromkeys(products),
        input_norm=norm,
        post_attention_norm=norm,
        q_norm=None,
        k_norm=None,
    )
    return RankWeights(
        layers=[layer] * spec.layers,
        embedding=torch.empty(own.true, hidden, dtype=torch.bfloat16, device=META),
        head=weight(own.size, hidden, kind="bfloat16"),
        final_norm=norm,
        bytes_read=0,
    )
