"""What the forward pass needs of the other ranks."""

from __future__ import annotations

from typing import Protocol

import torch

from ...kernels.program import Buffer, Program


class Collectives(Protocol):
    """Sums and gathers over ranks. Every call names the site for which it is made."""

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Sum float32 nodes [S, T, N], a rank's complete subtrees in order, over all ranks.

        `out` float32 [T, N] gets the root of the tree.
        """
        ...

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Put the tensors of all ranks, equal in shape and dtype, into out [degree, ...]."""
        ...

    def record_all_reduce(self, program: Program, nodes: Buffer, out: Buffer, site: str) -> None:
        """Let a program do `all_reduce` over the rows of its step."""
        ...

    def record_all_gather(self, program: Program, buffer: Buffer, out: Buffer, site: str) -> None:
        """Let a program do `all_gather` over the rows of its step."""
        ...


class CalledCollectives:
    """Collectives that a program calls as Python functions."""

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        raise NotImplementedError

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        raise NotImplementedError

    def record_all_reduce(self, program: Program, nodes: Buffer, out: Buffer, site: str) -> None:
        def call() -> None:
            rows = program.rows_of(nodes)
            planes = rows if nodes.planes > 1 else rows[None]
            self.all_reduce(planes, program.rows_of(out), site)

        program.call(call)

    def record_all_gather(self, program: Program, buffer: Buffer, out: Buffer, site: str) -> None:
        program.call(lambda: self.all_gather(program.rows_of(buffer), program.rows_of(out), site))
