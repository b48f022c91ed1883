"""Ranks on simulated GPUs that may load slowly, and run no kernel that was not loaded before."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

from isobit.launch.gpu_check import simulated_ranks
from isobit.runtime.transport.ticket import RankTicket


class SimulatedLauncher(simulated_ranks.SimulatedLauncher):
    """The last rank needs `slow_load_s` longer to load."""

    def __init__(
        self, folder: Path | None = None, trouble: str = "", slow_load_s: float = 0
    ) -> None:
        super().__init__(folder, trouble, functools.partial(_prepare, slow_load_s))


def _prepare(slow_load_s: float, ticket: RankTicket) -> None:
    if slow_load_s and ticket.rank == ticket.degree - 1:
        _load_slowly(slow_load_s)
    _run_loaded_kernels_alone()


def _load_slowly(seconds: float) -> None:
    from isobit.runtime.worker import worker

    load_rank = worker.load_rank

    def load_slowly(*arguments: Any) -> Any:
        time.sleep(seconds)
        return load_rank(*arguments)

    worker.load_rank = load_slowly


def _run_loaded_kernels_alone() -> None:
    """A kernel that was not compiled and loaded before it is started ends the rank."""
    from isobit.kernels.gpu.launch import Launch

    loaded, load, run = set(), Launch.load, Launch.run

    def noted(launch: Launch) -> None:
        loaded.add(launch.key)
        load(launch)

    def strict(launch: Launch) -> None:
        assert launch.key in loaded or not all(launch.grid), launch.key
        run(launch)

    Launch.load, Launch.run = noted, strict
