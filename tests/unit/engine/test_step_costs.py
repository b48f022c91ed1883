"""What a step takes and sends by the plan, against a decoder that is watched while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isobit.kernels.step.step import Step
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.collectives.hierarchical import HierarchicalCollectives
from isobit.runtime.forward.decoder import Decoder
from isobit.runtime.scheduler.kv_pages import pages_for
from isobit.runtime.trace.tracer import Tracer
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.estimate.memory import memory_model
from isobit.shard.estimate.traffic import between_hosts, step_traffic
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.plan import PlanSettings, ShardPlan, make_plan

from ...support import INT4

# Not every rank has as many subtrees, heads or columns as the one that has the most.
MOST_ABOVE = 1.15


class Mirror(GatherCollectives):
    """Ranks that all hold what this one holds: wrong numbers, the right bytes."""

    def __init__(self, plan: ShardPlan, rank: int) -> None:
        super().__init__(plan, rank)
        self.sent = 0

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        self.sent += (self.plan.degree - 1) * tensor.nbytes
        out[:] = tensor


class MirrorHost:
    """The ranks of a host, with wrong numbers and the right bytes."""

    def reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        out.zero_()

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        out[:] = tensor

    def broadcast(self, tensor: torch.Tensor, site: str) -> None:
        pass

    def abandon(self, cause: str) -> None:
        pass

    def close(self) -> None:
        pass


class MirrorExchange:
    """Counts what host number `own` sends to the others, who say nothing."""

    def __init__(self, own: int) -> None:
        self.own, self.sent = own, 0

    def share(self, parts: Sequence[torch.Tensor]) -> None:
        self.sent += (len(parts) - 1) * parts[self.own].nbytes


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made within the block held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), made_here=False)
        out = func(*args, **(kwargs or {}))
        self._note(out, made_here=True)
        self._live = {k: (ref, n) for k, (ref, n) in self._live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(n for _, n in self._live.values()))
        return out

    def _note(self, tree: Any, made_here: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                ref = StorageWeakRef(storage)
                known = self._live.get(ref.cdata)
                if known is None or known[0].expired():
                    self._live[ref.cdata] = (ref, storage.nbytes() if made_here else 0)


def run_step(
    degree: int, rank: int, rows: int, sampled: int, hosts: Sequence[range] = ()
) -> tuple[int, int, int, int]:
    """Bytes of workspace that a step took and was planned for, bytes that it sent and should.

    With hosts those are what the rank, the first of its host, sends to others.
    """
    spec, checkpoint = read_spec(INT4), open_checkpoint(INT4)
    plan = make_plan(spec, PlanSettings(degree=degree))
    dtype, pages = torch.bfloat16, pages_for(rows)
    own = next((i for i, ranks in enumerate(hosts) if rank in ranks), 0)
    exchange, mirror = MirrorExchange(own), Mirror(plan, rank)
    several = HierarchicalCollectives(plan, rank, hosts, MirrorHost(), exchange) if hosts else None
    decoder = Decoder(
        spec,
        plan,
        rank,
        load_rank(checkpoint, spec, plan, rank, dtype),
        several or mirror,
        Tracer(None),
        dtype=dtype,
        kv_pages=pages,
    )
    positions = torch.arange(rows)
    step = Step(
        tokens=positions + 5,
        positions=positions.int(),
        slots=positions,
        sequence=torch.zeros(rows, dtype=torch.int32),
        block_tables=torch.arange(pages, dtype=torch.int32)[None],
        sampled=positions[-sampled:],
    )
    normed = decoder.recorded.normed.nbytes
    with PeakBytes() as watch:
        decoder.forward(step)
    memory = memory_model(spec, "bfloat16", rows, checkpoint.entries).ranks(plan)[rank]
    traffic = (
        between_hosts(spec, plan, "bfloat16", hosts)[own]
        if hosts
        else step_traffic(spec, plan, "bfloat16")
    )
    return (
        watch.peak + normed,
        memory.step.total(sampled),
        exchange.sent if hosts else mirror.sent,
        traffic.total(rows, sampled),
    )


@pytest.mark.parametrize("sampled", [1, 96])
@pytest.mark.parametrize(("degree", "rank"), [(1, 0), (2, 1), (3, 0), (3, 2), (8, 0)])
def test_a_step_takes_and_sends_what_the_plan_says(degree, rank, sampled):
    taken, planned, sent, said = run_step(degree, rank, 96, sampled)
    assert taken <= planned <= MOST_ABOVE * taken
    assert sent == said


def test_a_decode_step_of_one_row():
    taken, planned, sent, said = run_step(3, 1, 1, 1)
    assert taken <= planned
    assert sent == said


@pytest.mark.parametrize(
    ("cut", "rank"), [((2, 1), 0), ((2, 1), 2), ((2, 2), 2), ((1, 3), 1), ((3, 2), 0)]
)
def test_over_several_hosts_a_step_takes_no_more_and_sends_what_the_plan_says(cut, rank):
    hosts, first = [], 0
    for count in cut:
        hosts.append(range(first, first + count))
        first += count
    taken, planned, sent, said = run_step(first, rank, 96, 1, hosts)
    assert taken <= planned
    assert sent == said > 0
