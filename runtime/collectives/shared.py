"""Collectives of the ranks of one host over POSIX shared memory, in C++."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch

from isobit.errors import EnvironmentFault, RankFault

from ...shard.plan.atoms import complete_subtrees
from ...shard.plan.hosts import owned_together
from ...shard.plan.plan import ShardPlan
from ..transport.process_group import exchange

if TYPE_CHECKING:
    from . import _shared

CAUSES = {1: "E-COLL-TIMEOUT", 2: "E-COLL-MISMATCH", 3: "E-COLL-FAILED"}


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """Sizes in bytes; equal on every rank. None of them changes a bit of any result.

    Each rank has two slots of `slot_bytes`; a longer message goes in pieces. From
    `two_shot_bytes` on (of float32 [T, N]) each rank adds up one stripe for all.
    """

    slot_bytes: int = 512 << 10
    two_shot_bytes: int = 64 << 10
    timeout_s: float = 60.0


class SharedCollectives:
    """The same bits as GatherCollectives, without the kernel's sockets. One thread calls.

    They join the ranks of one host, all of a plan or a run of them, and serve as Collectives in the
    one case and as HostCollectives in both. A failure on one rank ends the collectives of all:
    every later call fails with its cause.
    """

    invariant = True
    capturable = False

    def __init__(
        self,
        plan: ShardPlan,
        rank: int,
        settings: SharedSettings | None = None,
        members: range | None = None,
    ) -> None:
        """Map one memory object together with the members, which are all ranks unless given.

        Every rank of the default process group makes this call, whatever its host. Raises, on every
        rank alike, EnvironmentFault E-COLL-SHM where the memory of a host is too small or cannot be
        shared; RankFault E-COLL-FAILED where a rank is gone.
        """
        # Imported late: where the extension is missing, choose() falls back.
        from . import _shared

        self._native = _shared
        self.plan, self.rank = plan, rank
        self._settings = settings or SharedSettings()
        self._members = range(plan.degree) if members is None else members
        self._nodes = [complete_subtrees(plan.atoms, plan.owned(r)) for r in self._members]
        self._roots = complete_subtrees(plan.atoms, owned_together(plan, self._members))
        self._sites: dict[tuple[int, str], int] = {}
        self._communicator = self._join()

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives."""
        self.reduce(nodes, out[None], site)

    def reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See HostCollectives."""
        own = len(self._nodes[self.rank - self._members.start])
        assert nodes.dtype == out.dtype == torch.float32, (nodes.dtype, out.dtype)
        assert nodes.is_contiguous() and out.is_contiguous()
        assert len(nodes) == own and len(out) == len(self._roots), (nodes.shape, out.shape)
        assert nodes.shape[1:] == out.shape[1:], (nodes.shape, out.shape)
        context = self._context(out.shape[2], site)
        if self._native.all_reduce(context, nodes.data_ptr(), out.data_ptr(), out.shape[1]):
            self.raise_fault()

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives and HostCollectives."""
        assert tensor.dtype == out.dtype, (tensor.dtype, out.dtype)
        assert tensor.is_contiguous() and out.is_contiguous()
        assert out.shape == (len(self._members), *tensor.shape), (tensor.shape, out.shape)
        context = self._context(tensor.element_size(), site)
        if self._native.all_gather(context, tensor.data_ptr(), out.data_ptr(), tensor.numel()):
            self.raise_fault()

    def broadcast(self, tensor: torch.Tensor, site: str) -> None:
        """See HostCollectives."""
        assert tensor.is_contiguous()
        context = self._context(tensor.element_size(), site)
        if self._native.broadcast(context, tensor.data_ptr(), tensor.numel(), 0):
            self.raise_fault()

    def native_all_reduce(self, width: int, site: str) -> tuple[int, int]:
        """Return the addresses of a C function and of its context, for rows of `width` float32.

        `int64_t f(void* context, const void* nodes, void* out, int64_t rows)` gives 0, or another
        number when raise_fault has to be called. Both live as long as this object.
        """
        return self._native.all_reduce_address(), self._context(width, site)

    def native_all_gather(self, row_bytes: int, site: str) -> tuple[int, int]:
        """Likewise for `f(context, in, out, rows)` with rows of `row_bytes` bytes."""
        return self._native.all_gather_address(), self._context(row_bytes, site)

    def raise_fault(self) -> NoReturn:
        """Raise RankFault with the first cause: E-COLL-TIMEOUT, E-COLL-MISMATCH, E-COLL-FAILED."""
        cause, finder, text = self._communicator.fault()
        found = "" if finder == self.rank else f"found by rank {finder}: "
        raise RankFault(CAUSES.get(cause, "E-COLL-FAILED"), f"rank {self.rank}: {found}{text}")

    def check(self) -> None:
        """Nothing to do: what fails raises."""

    def abandon(self, cause: str) -> None:
        """See HostCollectives."""
        self._communicator.abandon(cause)

    def close(self) -> None:
        """See Collectives."""
        self._communicator.leave()

    def _context(self, width: int, site: str) -> int:
        context = self._sites.get((width, site))
        if context is None:
            context = self._sites[width, site] = self._communicator.add_site(site, width)
        return context

    def _join(self) -> _shared.Communicator:
        ranks, settings = len(self._members), self._settings
        sizes = self._native.Sizes(ranks, settings.slot_bytes, settings.two_shot_bytes)
        if self.plan.degree == 1:
            return self._attach("", sizes)
        first = self._members.start
        makes = ranks > 1 and self.rank == first
        name, wrong = f"/isobit-{secrets.token_hex(8)}" if makes else "", ""
        if makes:
            error, free = self._native.create_memory(name, sizes)
            if error:
                wrong = _too_small(error, self._native.bytes_needed(sizes), free, ranks)
        communicator = None
        try:
            made = [text.partition("\n") for text in self._exchange(f"{name}\n{wrong}")]
            name = made[first][0]
            if faults := [wrong for _, _, wrong in made if wrong]:
                raise EnvironmentFault("E-COLL-SHM", "\n".join(faults))
            try:
                communicator = self._attach(name, sizes)
            except RuntimeError as error:
                wrong = f"rank {self.rank}: {error}"
            faults = [text for text in self._exchange(wrong) if text]
        finally:
            # From here on the memory ends with the last process that has it mapped.
            if makes:
                self._native.unlink_memory(name)
        if communicator is None or faults:
            raise EnvironmentFault("E-COLL-SHM", "\n".join(faults))
        communicator.watch_peers()
        return communicator

    def _attach(self, name: str, sizes: _shared.Sizes) -> _shared.Communicator:
        return self._native.Communicator(
            name,
            sizes,
            self.rank - self._members.start,
            self._members.start,
            self._roots,
            self._nodes,
            self._settings.timeout_s,
        )

    def _exchange(self, text: str) -> list[str]:
        return exchange(text, self.rank, self.plan.degree, "setting up shared memory")


def _too_small(error: int, needed: int, free: int, ranks: int) -> str:
    return (
        f"shared memory (/dev/shm): {ranks} ranks need {needed / 2**20:.1f} MiB, "
        f"{free / 2**20:.1f} MiB are free ({os.strerror(error)}). Make it larger "
        "(docker run --shm-size=1g, or --ipc=host), or run with --disable-custom-all-reduce"
    )
