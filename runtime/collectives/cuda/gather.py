"""All-gather through NCCL, the tree computed by a kernel: invariant, and the fallback."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist

from ....kernels.gpu.launch import Launch
from ....kernels.gpu.peers import add_planes_of_peers, peer_tree
from ....shard.plan.plan import ShardPlan
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

    def all_reduce_launches(
        self, nodes: torch.Tensor, out: torch.Tensor, site: str
    ) -> Sequence[Launch]:
        """See DeviceCollectives: of which the kernels are none of NCCL's."""
        gathered = nodes.new_empty((self.plan.degree, self._most, *out.shape))
        return [add_planes_of_peers(gathered, out, self._tree)]

    def all_gather_launches(
        self, tensor: torch.Tensor, out: torch.Tensor, site: str
    ) -> Sequence[Launch]:
        """See DeviceCollectives: NCCL has its kernels compiled."""
        return []

    def patiently(self) -> AbstractContextManager[None]:
        """See DeviceCollectives: NCCL waits as long as its group was told."""
        return nullcontext()

    def start(self, device: torch.device) -> None:
        """Have NCCL connect all ranks now, and not within the first step."""
        if self.plan.degree > 1:
            own = torch.zeros(1, device=device)
            self.all_gather(own, own.new_empty(self.plan.degree, 1), "connecting ranks")
            own.cpu()

    def _gather(self, tensor: torch.Tensor, out: torch.Tensor) -> None:
        gather_into(out.view(-1), tensor.view(-1))
