"""Ranks forked from a server that has imported torch already: a run costs little but its work."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from ..ranks.launcher import LocalLauncher, how
from ..transport.address import Address
from ..transport.ticket import RankTicket

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["isobit.runtime.worker.worker", "isobit.runtime.worker.process"])


class ForkedLauncher(LocalLauncher):
    """A launcher for tests and rehearsals; the environment of a rank is that of the driver.

    `prepare` is called in each rank with its ticket and the `arguments` before it becomes one.
    """

    def __init__(self, prepare: Callable[..., None] | None = None, *arguments: Any) -> None:
        super().__init__()
        self._prepare = (prepare, *arguments)
        self._forked: list[BaseProcess] = []

    def address(self) -> Address:
        return Address()

    def launch(self, tickets: list[RankTicket]) -> None:
        for ticket in tickets:
            arguments = (ticket, dict(os.environ), *self._prepare)
            process = SERVER.Process(target=_rank, args=arguments, daemon=True)
            process.start()
            self._forked.append(process)

    def dead(self) -> dict[int, str]:
        return {
            rank: how(code)
            for rank, process in enumerate(self._forked)
            if (code := process.exitcode) is not None
        }

    def hosts(self) -> list[str]:
        return [platform.node()] * len(self._forked)

    def stop(self) -> None:
        for process in self._forked:
            process.join(timeout=1)
            process.kill()
            process.join()
        self._forked.clear()


def _rank(
    ticket: RankTicket,
    environment: dict[str, str],
    prepare: Callable[..., None] | None,
    *arguments: Any,
) -> None:
    # Not those of the server, which are those of the process that started it.
    os.environ.clear()
    os.environ.update(environment)
    from .process import name_process, run_rank

    if prepare is not None:
        prepare(ticket, *arguments)
    name_process(ticket)
    run_rank(ticket)
