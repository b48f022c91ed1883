"""All-gather through torch.distributed, the tree computed locally: invariant and simple."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ...kernels.errors import RankFault
from ...shard.atoms import complete_subtrees
from ...shard.plan import ShardPlan
from .tree import sum_root, sum_subtrees


class GatherCollectives:
    """Collectives of one rank over the default process group (none is needed at degree 1).

    Every call carries the site for which it is made; an error names rank, operation, sequence
    number and site.
    """

    def __init__(self, plan: ShardPlan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.sequence = 0
        self._owned = plan.owned(rank)
        self._nodes = [complete_subtrees(plan.atoms, plan.owned(r)) for r in range(plan.degree)]

    def all_reduce(self, partials: torch.Tensor, site: str) -> torch.Tensor:
        """Sum float32 partials [A, T, N], one per atom that this rank owns, over all atoms.

        Returns [T, N] with the same bits on every rank and at every degree.
        """
        own = sum_subtrees(partials, self._owned, self.plan.atoms)
        most = max(len(nodes) for nodes in self._nodes)
        message = torch.stack(own + [torch.zeros_like(own[0])] * (most - len(own)))
        gathered = self.all_gather(message, site)
        nodes, values = [], []
        for theirs, message in zip(self._nodes, gathered, strict=True):
            nodes += theirs
            values += message[: len(theirs)].unbind()
        return self.sum_root(nodes, values)

    def sum_root(self, nodes: list[tuple[int, int]], values: list[torch.Tensor]) -> torch.Tensor:
        return sum_root(nodes, values, self.plan.atoms)

    def all_gather(self, tensor: torch.Tensor, site: str) -> list[torch.Tensor]:
        """Return the tensors of all ranks, in rank order; shapes and dtypes are equal."""
        self.sequence += 1
        if self.plan.degree == 1:
            return [tensor]
        tensor = tensor.contiguous()
        gathered = [torch.empty_like(tensor) for _ in range(self.plan.degree)]
        try:
            dist.all_gather(gathered, tensor)
        except RuntimeError as error:
            raise RankFault(
                "E-COLL-FAILED",
                f"rank {self.rank}: all_gather number {self.sequence} at {site} failed: "
                f"{str(error).splitlines()[0]}",
            ) from error
        return gathered
