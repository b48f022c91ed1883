"""All-gather through NCCL, the tree computed by a kernel: invariant, and the fallback."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ....kernels.gpu.peers import add_planes_of_peers, peer_tree
from ....shard.plan import ShardPlan
from ..gather import GatherCollectives

# torch 2.13 has given it another name.
gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class CudaGatherCollectives(GatherCollectives):
    """Collectives over the default process group, whose tensors on devices go through NCCL."""

    capturable = True

    def __init__(self, plan: ShardPlan, rank: int) -> None:
        super().__init__(plan, rank)
        self._tree = peer_tree(self._nodes)

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives: the same bits as on the CPU, on every rank and at every degree."""
        own = nodes
        if len(own) < self._most:
            own = nodes.new_zeros((self._most, *out.shape))
            own[: len(nodes)] = nodes
        gathered = own.new_empty((self.plan.degree, *own.shape))
        self.all_gather(own, gathered, site)
        add_planes_of_peers(gathered, out, self._tree).run()

    def _gather(self, tensor: torch.Tensor, out: torch.Tensor) -> None:
        gather_into(out.view(-1), tensor.view(-1))
