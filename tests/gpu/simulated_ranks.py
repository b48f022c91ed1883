"""Ranks as processes whose CUDA device is a simulated card; kernels are interpreted."""

from __future__ import annotations

import os

from isobit.runtime.ticket import RankTicket

from ..faults.forked_launcher import SERVER, ForkedLauncher


class SimulatedLauncher(ForkedLauncher):
    """A launcher of ranks that were told "cuda"."""

    def launch(self, tickets: list[RankTicket]) -> None:
        assert all(ticket.device == "cuda" for ticket in tickets)
        for ticket in tickets:
            process = SERVER.Process(target=_rank, args=(ticket, dict(os.environ)), daemon=True)
            process.start()
            self._forked.append(process)


def _rank(ticket: RankTicket, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from isobit.kernels.gpu.device import Gpu
    from isobit.runtime import worker
    from isobit.runtime.rank_process import run_rank

    from .interpreter import install
    from .simulated_card import SimulatedCard

    install()

    def open_device(name: str, *, most_rows: int, eager: bool) -> Gpu:
        assert name == "cuda"
        return Gpu(SimulatedCard(), most_rows=most_rows, eager=eager)

    worker.open_device = open_device
    run_rank(ticket)
