"""Ranks forked from a server that has imported torch already: a run costs little but its work."""

from __future__ import annotations

import multiprocessing
import os
import platform
from multiprocessing.process import BaseProcess

from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.transport.address import Address
from isobit.runtime.transport.ticket import RankTicket

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["isobit.runtime.worker.worker", "isobit.runtime.worker.process"])


class ForkedLauncher(LocalLauncher):
    """A launcher for tests; the environment of a rank is that of the test."""

    def __init__(self) -> None:
        super().__init__()
        self._forked: list[BaseProcess] = []

    def address(self) -> Address:
        return Address()

    def launch(self, tickets: list[RankTicket]) -> None:
        for ticket in tickets:
            process = SERVER.Process(target=_rank, args=(ticket, dict(os.environ)), daemon=True)
            process.start()
            self._forked.append(process)

    def dead(self) -> dict[int, str]:
        return {
            rank: f"ended with status {process.exitcode}"
            if (process.exitcode or 0) >= 0
            else f"was killed by signal {-(process.exitcode or 0)}"
            for rank, process in enumerate(self._forked)
            if process.exitcode is not None
        }

    def hosts(self) -> list[str]:
        return [platform.node()] * len(self._forked)

    def stop(self) -> None:
        for process in self._forked:
            process.join(timeout=1)
            process.kill()
            process.join()


def _rank(ticket: RankTicket, environment: dict[str, str]) -> None:
    from isobit.runtime.worker.process import run_rank

    # Not those of the server, which are those of the test that started it.
    os.environ.clear()
    os.environ.update(environment)
    run_rank(ticket)
