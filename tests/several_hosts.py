"""Hosts that are names only: ranks on this machine that take each other for far away."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from isobit.runtime.transport.address import Address
from isobit.runtime.transport.ticket import RankTicket
from isobit.runtime.worker.fault_injection import FaultContext
from isobit.runtime.worker.forked_launcher import ForkedLauncher


class HostsLauncher(ForkedLauncher):
    """Everything goes over TCP, by loopback; `ranks` says how many ranks are on each host."""

    def __init__(self, ranks: Sequence[int]) -> None:
        super().__init__()
        self._ranks = ranks

    def address(self) -> Address:
        return Address(host="127.0.0.1")

    def launch(self, tickets: list[RankTicket]) -> None:
        assert len(tickets) == sum(self._ranks)
        super().launch(tickets)

    def hosts(self) -> list[str]:
        return [f"box-{host}" for host, count in enumerate(self._ranks) for _ in range(count)]

    def pid(self, rank: int) -> int:
        pid = self._forked[rank].pid
        assert pid is not None
        return pid


def hold_the_interpreter(context: FaultContext) -> None:
    """Rank 1 runs no Python thread for four seconds, as while a large library is loaded."""
    if context.rank == 1:
        ctypes.PyDLL(None).usleep(4_000_000)
