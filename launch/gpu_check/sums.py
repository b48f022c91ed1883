"""Sums of two ranks: bits of the tree, and times, over each kind of memory and through NCCL."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ...runtime.collectives.cuda.custom import CustomCollectives
from ...runtime.collectives.cuda.gather import CudaGatherCollectives
from ...runtime.collectives.cuda.regions import Transport
from ...runtime.collectives.interface import Collectives
from ...runtime.collectives.measure import plan_of_atoms
from ...runtime.collectives.tree import sum_root, sum_subtrees
from ...runtime.transport import rendezvous
from ...shard.plan.plan import ShardPlan
from .place import NotRun, Place, Report, require

ATOMS = 8
TIMEOUT_S = 20.0
HOST: Transport = "host memory"
PEER: Transport = "peer memory"


def host_memory(at: Place, report: Report) -> None:
    _custom(HOST, at, report)


def peer_memory(at: Place, report: Report) -> None:
    _needs_peers(at)
    _custom(PEER, at, report)


def graph_of_sums(at: Place, report: Report) -> None:
    """Sums within one graph, replayed with new inputs: sequence numbers lie on the device."""
    transport = PEER if _reach_each_other(at) else HOST
    plan = _join(at)
    collectives = _open(transport, plan, at)
    rows, count = at.sizes.sum_rows[0], 3
    nodes = _nodes(plan, at, _leaves(rows, at, 0)).clone()
    outs = [torch.empty(rows, at.sizes.sum_hidden, device=at.device) for _ in range(count)]

    def calls() -> None:
        for number, out in enumerate(outs):
            collectives.all_reduce(nodes, out, f"layer {number}")

    calls()
    replay = at.card().capture(calls)
    for number in range(at.sizes.replays):
        leaves = _leaves(rows, at, number)
        nodes.copy_(_nodes(plan, at, leaves))
        replay()
        wanted = _root(leaves)
        for out in outs:
            require(torch.equal(out.cpu(), wanted), f"replay {number}: not the bits of the tree")
    collectives.check()
    collectives.close()
    report.row(over=transport, replays=at.sizes.replays)


def nccl(at: Place, report: Report) -> None:
    """Gathering through NCCL with the tree in a kernel; NCCL's own sum, which has other bits."""
    if len(set(at.gpus)) == 1:
        raise NotRun("NCCL refuses two ranks on one GPU")
    plan = _join(at, cuda=not at.rehearsal)
    _measure(CudaGatherCollectives(plan, at.rank), plan, at, report, "gather")
    for rows in at.sizes.sum_rows:
        tensor = torch.randn(rows, at.sizes.sum_hidden, device=at.device)
        dist.all_reduce(tensor)
        seconds = at.seconds([lambda tensor=tensor: dist.all_reduce(tensor)] * at.sizes.timed)
        report.row(over="library", rows=rows, us=seconds * 1e6)


def _custom(transport: Transport, at: Place, report: Report) -> None:
    plan = _join(at)
    collectives = _open(transport, plan, at)
    _measure(collectives, plan, at, report, transport)
    collectives.close()


def _join(at: Place, cuda: bool = False) -> ShardPlan:
    rendezvous.join(f"file://{at.folder}/rendezvous", at.rank, len(at.gpus), cuda=cuda)
    return plan_of_atoms(len(at.gpus), ATOMS)


def _open(transport: Transport, plan: ShardPlan, at: Place) -> CustomCollectives:
    return CustomCollectives(
        plan,
        at.rank,
        device=at.device,
        driver=at.driver(),
        transport=transport,
        timeout_s=TIMEOUT_S,
        settings=at.sum_settings(),
    )


def _measure(
    collectives: Collectives, plan: ShardPlan, at: Place, report: Report, over: str
) -> None:
    for rows in at.sizes.sum_rows:
        for seed in range(at.sizes.repeats):
            leaves = _leaves(rows, at, seed)
            out = torch.full((rows, at.sizes.sum_hidden), torch.nan, device=at.device)
            collectives.all_reduce(_nodes(plan, at, leaves), out, "check")
            found, wanted = out.cpu(), _root(leaves)
            collectives.check()
            differ = (found.view(torch.int32) != wanted.view(torch.int32)).flatten().nonzero()
            require(
                not len(differ),
                f"{over}, {rows} rows, call {seed}: {len(differ)} of {found.numel()} elements are "
                "not the bits of the tree",
            )
        nodes = _nodes(plan, at, _leaves(rows, at, 0))
        out = torch.empty(rows, at.sizes.sum_hidden, device=at.device)
        call = lambda nodes=nodes, out=out: collectives.all_reduce(nodes, out, "timed")  # noqa: E731
        seconds = at.seconds([call] * at.sizes.timed)
        collectives.check()
        size = 4 * rows * at.sizes.sum_hidden
        report.row(over=over, rows=rows, bytes=size, us=seconds * 1e6)


def _leaves(rows: int, at: Place, seed: int) -> torch.Tensor:
    """Partial sums `[ATOMS, rows, hidden]` of all magnitudes, equal on every rank."""
    generator = torch.Generator().manual_seed(seed)
    shape = (ATOMS, rows, at.sizes.sum_hidden)
    exponents = torch.randint(-12, 12, shape, generator=generator)
    return torch.randn(shape, generator=generator) * 2.0**exponents


def _nodes(plan: ShardPlan, at: Place, leaves: torch.Tensor) -> torch.Tensor:
    owned = plan.owned(at.rank)
    own = sum_subtrees(leaves[owned.start : owned.stop], owned, ATOMS)
    return torch.stack(own).to(at.device)


def _root(leaves: torch.Tensor) -> torch.Tensor:
    return sum_root([(0, ATOMS)], sum_subtrees(leaves, range(ATOMS), ATOMS), ATOMS)


def _reach_each_other(at: Place) -> bool:
    return all(at.driver().reaches(gpu) is not False for gpu in at.gpus)


def _needs_peers(at: Place) -> None:
    if not _reach_each_other(at):
        other = next(gpu for gpu in at.gpus if gpu != at.gpus[at.rank])
        raise NotRun(f"CUDA says that cuda:{at.gpus[at.rank]} cannot read the memory of "
                     f"cuda:{other}")  # fmt: skip
