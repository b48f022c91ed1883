"""Collectives of ranks on CUDA devices of one host, in one kernel a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch

from isobit.errors import RankFault

from ....kernels.gpu.launch import Launch, run_all
from ....kernels.gpu.peers import (
    BLOCK,
    MOST_SITES,
    PROGRAMS,
    Failure,
    Peer,
    RegionShape,
    peer_tree,
    read_report,
)
from ....shard.plan.atoms import complete_subtrees
from ....shard.plan.plan import ShardPlan
from ...transport.process_group import exchange
from .driver import Driver
from .regions import Transport, map_regions

FIRST_TIMEOUT_S = 60.0
"""How long a call waits at least that another rank may make for the first time: it sets up a step,
and captures it, at its own pace."""
CAUSES = {1: "E-COLL-TIMEOUT", 2: "E-COLL-MISMATCH", 3: "E-COLL-FAILED"}


@dataclass(frozen=True, kw_only=True)
class KernelSettings:
    """How a call is spread over the card; equal on every rank. Neither changes a bit.

    A call takes at most `programs` programs, each of which takes `block` elements at a time.
    """

    programs: int = PROGRAMS
    block: int = BLOCK


class CustomCollectives:
    """The same bits as GatherCollectives. A CUDA graph may hold every call: sequence numbers lie on
    the device.

    Calls return before they are done. A call that failed shows in `check`, and every later one on
    any rank fails as well.
    """

    invariant = True
    capturable = True

    def __init__(
        self,
        plan: ShardPlan,
        rank: int,
        *,
        device: torch.device,
        driver: Driver,
        transport: Transport,
        timeout_s: float,
        settings: KernelSettings | None = None,
    ) -> None:
        """Map memory together with all ranks of the default process group.

        Raises, on every rank alike, EnvironmentFault E-COLL-CUDA or E-COLL-SHM where memory cannot
        be shared; RankFault E-COLL-FAILED where a rank is gone.
        """
        self.plan, self.rank, self.transport = plan, rank, transport
        settings = settings or KernelSettings()
        nodes = [complete_subtrees(plan.atoms, plan.owned(r)) for r in range(plan.degree)]
        self._planes, self._tree = len(nodes[rank]), peer_tree(nodes)
        self.most_planes = max(map(len, nodes))
        shape = RegionShape(
            peers=plan.degree,
            planes=self.most_planes,
            programs=settings.programs,
            block=settings.block,
        )
        self._regions = map_regions(
            transport,
            driver,
            shape.nbytes,
            rank,
            lambda text: exchange(text, rank, plan.degree, f"setting up {transport}"),
        )
        self._driver, self._closed = driver, False
        self._sites: dict[str, int] = {}
        self._report = driver.report()
        self._peer = Peer(
            rank=rank,
            shape=shape,
            regions=torch.tensor(self._regions.addresses, dtype=torch.int64, device=device),
            counts=torch.zeros(settings.programs, dtype=torch.int32, device=device),
            status=torch.zeros(1, dtype=torch.int64, device=device),
            report=self._report,
            patience_ns=0,
        )
        self.set_timeout(timeout_s)

    def set_timeout(self, seconds: float) -> None:
        """How long later calls wait for another rank; a graph keeps what it was recorded with."""
        self.timeout_s = seconds
        self._peer = dataclasses.replace(self._peer, patience_ns=int(seconds * 1e9))

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """See DeviceCollectives."""
        usual = self.timeout_s
        self.set_timeout(max(usual, FIRST_TIMEOUT_S))
        try:
            yield
        finally:
            self.set_timeout(usual)

    def all_reduce(self, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives."""
        run_all(self.all_reduce_launches(nodes, out, site))

    def all_gather(self, tensor: torch.Tensor, out: torch.Tensor, site: str) -> None:
        """See Collectives."""
        run_all(self.all_gather_launches(tensor, out, site))

    def all_reduce_launches(
        self, nodes: torch.Tensor, out: torch.Tensor, site: str
    ) -> Sequence[Launch]:
        """See DeviceCollectives; every start is one call of the sequence."""
        assert nodes.dtype == out.dtype == torch.float32, (nodes.dtype, out.dtype)
        assert nodes.is_contiguous() and out.is_contiguous()
        assert nodes.shape == (self._planes, *out.shape), (nodes.shape, out.shape)
        number = self._number(site)
        return [self._peer.all_reduce(nodes, out, self._tree, site=number, name=site)]

    def all_gather_launches(
        self, tensor: torch.Tensor, out: torch.Tensor, site: str
    ) -> Sequence[Launch]:
        """See DeviceCollectives."""
        assert tensor.dtype == out.dtype, (tensor.dtype, out.dtype)
        assert tensor.is_contiguous() and out.is_contiguous()
        assert out.shape == (self.plan.degree, *tensor.shape), (tensor.shape, out.shape)
        return [self._peer.all_gather(tensor, out, site=self._number(site), name=site)]

    def check(self) -> None:
        """See Collectives; raises E-COLL-TIMEOUT, E-COLL-MISMATCH or E-COLL-FAILED."""
        failure = read_report(int(self._report[0]))
        if failure is not None:
            self._raise(failure)

    def close(self) -> None:
        """See Collectives."""
        if not self._closed:
            self._closed = True
            self._regions.close()

    def _raise(self, failure: Failure) -> NoReturn:
        site = list(self._sites)[failure.site]
        what = {
            1: f"rank {failure.peer} did not come within {self.timeout_s:g} s",
            2: f"rank {failure.peer} makes another call, or one of another size",
            3: f"rank {failure.peer} has given up",
        }[failure.cause]
        raise RankFault(
            CAUSES[failure.cause],
            f"rank {self.rank}: {site}, meeting {failure.number} over {self.transport}: {what}",
        )

    def _number(self, site: str) -> int:
        number = self._sites.setdefault(site, len(self._sites))
        assert number < MOST_SITES
        return number
