"""Starting the processes of an engine: the interface, and plain processes on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
from typing import Protocol

from ..devices import on_this_machine
from ..transport.address import Address
from ..transport.ticket import RankTicket


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
    """Ranks as child processes of the driver; they end when it ends, however it ends."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def address(self) -> Address:
        return Address()

    def launch(self, tickets: list[RankTicket]) -> None:
        for ticket in on_this_machine(tickets):
            process = subprocess.Popen(
                [sys.executable, "-m", "isobit.runtime.worker.process", str(os.getpid())],
                stdin=subprocess.PIPE,
            )
            self._processes.append(process)
            assert process.stdin is not None
            # One that has ended already does not read; dead() tells.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(dataclasses.asdict(ticket)).encode() + b"\n")
                process.stdin.close()

    def dead(self) -> dict[int, str]:
        return {
            rank: how(process.returncode)
            for rank, process in enumerate(self._processes)
            if process.poll() is not None
        }

    def hosts(self) -> list[str]:
        return [platform.node()] * len(self._processes)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def how(status: int) -> str:
    """How a process ended, by its exit status as Python tells it."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
