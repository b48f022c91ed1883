"""Sums over several hosts: inside a host as on one alone, between hosts by one rank of each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.distributed as dist

from isobit.errors import RankFault

from ...shard.plan.atoms import offsets
from ...shard.plan.hosts import host_nodes
from ...shard.plan.plan import ShardPlan
from ..transport.process_group import named_failures
from .interface import HostCollectives
from .tree import sum_root


class Exchange(Protocol):
    """How the first ranks of all hosts speak with each other."""

    def share(self, parts: Sequence[torch.Tensor]) -> None:
        """Fill parts[i], contiguous, with the one of host i; only the first ranks make this call.

        Raises RuntimeError when another host is gone or late.
        """
        ...


class LeaderExchange:
    """Over torch.distributed: every host sends its part to every other, and nothing else."""

    def __init__(self, hosts: Sequence[range], timeout_s: float) -> None:
        """Every rank of the default process group makes this call."""
        self._leaders = [ranks.start for ranks in hosts]
        self._group: Any = dist.new_group(self._leaders, timeout=timedelta(seconds=timeout_s))

    def share(self, parts: Sequence[torch.Tensor]) -> None:
        """See Exchange. The parts may differ in size; all are on their way at once."""
        sent = [
            dist.broadcast(part, src=leader, group=self._group, async_op=True)
            for leader, part in zip(self._leaders, parts, strict=True)
            if part.numel()
        ]
        for work in sent:
            assert work is not None
            work.wait()


class HierarchicalCollectives:
    """The tree of every other way to sum, so the same bits: only who adds which node differs.

    The ranks of a host add up its complete subtrees. The first rank of each host gathers those of
    all hosts, finishes the tree and hands the sum to the others of its host.
    """

    invariant = True
    capturable = False

    def __init__(
        self,
        plan: ShardPlan,
        rank: int,
        hosts: Sequence[range],
        inside: HostCollectives,
        between: Exchange,
    ) -> None:
        """`hosts` are runs of ranks that together are all; `inside` joins those of this host."""
        self.plan, self.rank = plan, rank
        self.sequence = 0
        self._hosts, self._inside, self._between = hosts, inside, between
        self._host = next(i for i, ranks in enumerate(hosts) if rank in ranks)
        self._leads = rank == hosts[self._host].start
        nodes = host_nodes(plan, hosts)
        self._nodes = [node for theirs in nodes for node in theirs]
        self._parts = [slice(*ends) for ends in pairwise(offsets([len(each) for each in nodes]))]

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives: the same bits on every rank and at every degree."""
        own = self._parts[self._host]
        if self._leads:
            gathered = out.new_empty((len(self._nodes), *out.shape))
            self._inside.reduce(nodes, gathered[own], site)
            self._share([gathered[part] for part in self._parts], site)
            out.copy_(sum_root(self._nodes, gathered.unbind(), self.plan.atoms))
        else:
            self._inside.reduce(nodes, out.new_empty((own.stop - own.start, *out.shape)), site)
        self._inside.broadcast(out, site)

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives."""
        parts = [out[ranks.start : ranks.stop] for ranks in self._hosts]
        self._inside.all_gather(tensor, parts[self._host], site)
        if self._leads:
            self._share(parts, site)
        self._inside.broadcast(out, site)

    def check(self) -> None:
        """Nothing to do: what fails raises."""

    def close(self) -> None:
        """See Collectives. The process group is not this object's."""
        self._inside.close()

    def _share(self, parts: Sequence[torch.Tensor], site: str) -> None:
        self.sequence += 1
        try:
            with named_failures(
                lambda: f"rank {self.rank}: gather between hosts number {self.sequence} at {site}"
            ):
                self._between.share(parts)
        except RankFault as fault:
            # The others of this host wait for this rank, and would only say that it is late.
            self._inside.abandon(fault.message)
            raise
