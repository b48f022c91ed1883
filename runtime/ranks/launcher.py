"""Starting the processes of an engine: the interface, and plain processes on this machine."""

from __future__ import annotations

import os
import platform
from typing import Protocol

from ..devices import on_this_machine
from ..transport.address import Address
from ..transport.ticket import RankTicket
from .server import RankServer, started_server


class Launcher(Protocol):
    """Places ranks somewhere, watches them and ends them."""

    def address(self) -> Address:
        """Where the driver has to listen so that ranks can reach it."""
        ...

    def launch(self, tickets: list[RankTicket]) -> None:
        """Start one process per ticket. A ticket for "cuda" goes on with the number of a card."""
        ...

    def dead(self) -> dict[int, str]:
        """Ranks that have ended, and how ("ended with status 1", "was killed by signal 9")."""
        ...

    def hosts(self) -> list[str]:
        """The host of each rank that was launched, by a name that a person knows.

        Ranks of one host are neighbours; different hosts have different names.
        """
        ...

    def stop(self) -> None:
        """End every process that launch started. Safe to call twice."""
        ...


class LocalLauncher:
    """Ranks as processes of this machine; they end when the driver ends, however it ends."""

    def __init__(self) -> None:
        self._server: RankServer | None = None
        self._count = 0

    def address(self) -> Address:
        return Address()

    def launch(self, tickets: list[RankTicket]) -> None:
        if self._server is None:
            self._server = started_server()
        for ticket in on_this_machine(tickets):
            self._server.fork(ticket)
        self._count += len(tickets)

    def pids(self) -> list[int]:
        """The process ids of the ranks that have started, in their order."""
        return self._server.pids() if self._server is not None else []

    def dead(self) -> dict[int, str]:
        if self._server is None:
            return {}
        statuses = self._server.statuses(self._count)
        return {rank: how(status) for rank, status in statuses.items()}

    def hosts(self) -> list[str]:
        return [platform.node()] * self._count

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server, self._count = None, 0


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def how(status: int) -> str:
    """How a process ended, by its exit status as Python tells it."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
