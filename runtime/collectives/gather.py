"""All-gather through torch.distributed, the tree computed locally: invariant and simple."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ...kernels.errors import RankFault
from ...shard.atoms import complete_subtrees
from ...shard.plan import ShardPlan
from .interface import CalledCollectives
from .tree import sum_root


class GatherCollectives(CalledCollectives):
    """Collectives of one rank over the default process group (none is needed at degree 1).

    Every call carries the site for which it is made; an error names rank, operation, sequence
    number and site.
    """

    def __init__(self, plan: ShardPlan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        self.sequence = 0
        self._nodes = [complete_subtrees(plan.atoms, plan.owned(r)) for r in range(plan.degree)]

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Sum float32 nodes [S, T, N], this rank's complete subtrees, over all atoms.

        `out` [T, N] gets the same bits on every rank and at every degree.
        """
        most = max(len(theirs) for theirs in self._nodes)
        message = nodes.new_zeros(most, *nodes.shape[1:])
        message[: len(nodes)] = nodes
        gathered = nodes.new_empty(self.plan.degree, *message.shape)
        self.all_gather(message, gathered, site)
        names, values = [], []
        for theirs, message in zip(self._nodes, gathered, strict=True):
            names += theirs
            values += message[: len(theirs)].unbind()
        out.copy_(self.sum_root(names, values))

    def sum_root(self, nodes: list[tuple[int, int]], values: list[torch.Tensor]) -> torch.Tensor:
        return sum_root(nodes, values, self.plan.atoms)

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Put the tensors of all ranks into out [degree, ...], in the order of ranks."""
        self.sequence += 1
        if self.plan.degree == 1:
            out[0] = tensor
            return
        try:
            dist.all_gather(list(out.unbind()), tensor.contiguous())
        except RuntimeError as error:
            raise RankFault(
                "E-COLL-FAILED",
                f"rank {self.rank}: all_gather number {self.sequence} at {site} failed: "
                f"{str(error).splitlines()[0]}",
            ) from error
