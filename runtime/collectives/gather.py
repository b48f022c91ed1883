"""All-gather through torch.distributed, the tree computed locally: invariant and simple."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ...shard.plan.atoms import complete_subtrees
from ...shard.plan.plan import ShardPlan
from ..transport.process_group import named_failures
from .tree import sum_root


class GatherCollectives:
    """Collectives over the default process group (none is needed at degree 1)."""

    invariant = True
    capturable = False

    def __init__(self, plan: ShardPlan, rank: int, group: dist.ProcessGroup | None = None) -> None:
        """`group`: of all ranks, the default one unless given."""
        self.plan, self.rank, self._group = plan, rank, group
        self.sequence = 0
        self._nodes = [complete_subtrees(plan.atoms, plan.owned(r)) for r in range(plan.degree)]
        self._most = max(len(nodes) for nodes in self._nodes)

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives: the same bits on every rank and at every degree."""
        own = nodes
        if len(own) < self._most:
            # Gathered tensors are of one size; what fills it up is not read.
            own = torch.cat([own, own.new_zeros((self._most - len(own), *own.shape[1:]))])
        gathered = own.new_empty((self.plan.degree, *own.shape))
        self.all_gather(own, gathered, site)
        known, values = [], []
        for theirs, message in zip(self._nodes, gathered, strict=True):
            known += theirs
            values += message[: len(theirs)].unbind()
        out.copy_(sum_root(known, values, self.plan.atoms))

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives."""
        self.sequence += 1
        if self.plan.degree == 1:
            out[0].copy_(tensor)
            return
        with named_failures(
            lambda: f"rank {self.rank}: all_gather number {self.sequence} at {site}"
        ):
            self._gather(tensor, out)

    def _gather(self, tensor: torch.Tensor, out: torch.Tensor) -> None:
        dist.all_gather(list(out.unbind()), tensor.contiguous(), group=self._group)

    def check(self) -> None:
        """Nothing to do: what fails raises."""

    def close(self) -> None:
        """Nothing to do: the process group is not this object's."""
