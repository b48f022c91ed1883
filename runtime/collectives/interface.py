"""What a model needs of the other ranks, whoever carries it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from ...kernels.gpu.launch import Launch

Mode = Literal["auto", "custom", "hierarchical", "gather", "library"]
MODES: tuple[Mode, ...] = ("auto", "custom", "hierarchical", "gather", "library")


class Collectives(Protocol):
    """Sums and gathers of one rank. Every rank makes the same calls in the same order.

    Every call carries the site for which it is made; a call that fails raises RankFault, whose
    message names rank, operation, sequence number and site.
    """

    @property
    def invariant(self) -> bool:
        """Whether a sum has the same bits at every degree."""
        ...

    @property
    def capturable(self) -> bool:
        """Whether a call does nothing but start work on the current CUDA stream, the same each
        time, so that a CUDA graph may hold it."""
        ...

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Fill `out` float32 [T, N] with the sum over all atoms.

        `nodes` float32 [S, T, N] holds the sums of this rank's complete subtrees, in the order of
        shard.atoms.complete_subtrees. T may vary from call to call; both are contiguous.
        """
        ...

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Fill `out` [degree, ...] with the tensors [...] of all ranks, in the order of ranks.

        Shapes and dtypes are equal on every rank; both are contiguous.
        """
        ...

    def check(self) -> None:
        """Raise RankFault if a call is known to have failed that returned before it was done."""
        ...

    def close(self) -> None:
        """Tell the other ranks that no call will follow. Safe to call twice."""
        ...


@runtime_checkable
class DeviceCollectives(Collectives, Protocol):
    """Collectives whose calls start kernels, compiled before ranks wait for each other."""

    def all_reduce_launches(
        self, nodes: torch.Tensor, out: torch.Tensor, site: str
    ) -> Sequence[Launch]:
        """The kernels that all_reduce would start."""
        ...

    def all_gather_launches(
        self, tensor: torch.Tensor, out: torch.Tensor, site: str
    ) -> Sequence[Launch]:
        """The kernels that all_gather would start."""
        ...

    def patiently(self) -> AbstractContextManager[None]:
        """Calls within may find other ranks late: they start something for the first time."""
        ...


class HostCollectives(Protocol):
    """What the ranks of one host do among themselves; the first of them speaks with other hosts.

    Calls and failures as in Collectives.
    """

    def reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Fill `out` float32 [R, T, N] with the sums of the host's complete subtrees.

        `nodes` float32 [S, T, N] are the rank's own; both are in the order of complete_subtrees.
        """
        ...

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """Fill `out` [ranks of the host, ...] with the tensors [...] of the host's ranks."""
        ...

    def broadcast(self, tensor: torch.Tensor, site: str) -> None:
        """Fill a contiguous `tensor` with that of the host's first rank."""
        ...

    def abandon(self, cause: str) -> None:
        """Make every present and later call on the host fail with `cause`."""
        ...

    def close(self) -> None:
        """See Collectives."""
        ...
