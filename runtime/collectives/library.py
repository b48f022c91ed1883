"""torch.distributed's own all_reduce: NOT degree-invariant."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..transport.process_group import named_failures
from .gather import GatherCollectives


class LibraryCollectives(GatherCollectives):
    """Sums in whatever order the library takes: bits differ from degree to degree.

    It serves as a yardstick and for bisecting; reports say when it is on.
    """

    invariant = False

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Sum the rank's nodes from the first to the last, then leave the rest to the library."""
        self.sequence += 1
        out.copy_(nodes[0])
        for node in nodes[1:]:
            out += node
        if self.plan.degree == 1:
            return
        with named_failures(
            lambda: f"rank {self.rank}: all_reduce number {self.sequence} at {site}"
        ):
            dist.all_reduce(out)
