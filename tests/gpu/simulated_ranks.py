"""Ranks as processes whose CUDA device is a simulated card; kernels are interpreted."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from isobit.runtime.ticket import RankTicket

from ..faults.forked_launcher import SERVER, ForkedLauncher


class SimulatedLauncher(ForkedLauncher):
    """A launcher of ranks that were told "cuda".

    With a `folder` they choose their collectives as on CUDA; memory of the devices are files there,
    with the `trouble` of FileDriver. The last rank needs `slow_load_s` longer to load.
    """

    def __init__(
        self, folder: Path | None = None, trouble: str = "", slow_load_s: float = 0
    ) -> None:
        super().__init__()
        self._memory, self._slow_load_s = (folder, trouble), slow_load_s

    def launch(self, tickets: list[RankTicket]) -> None:
        assert all(ticket.device == "cuda" for ticket in tickets)
        for ticket in tickets:
            slow_s = self._slow_load_s if ticket is tickets[-1] else 0
            process = SERVER.Process(
                target=_rank, args=(ticket, dict(os.environ), *self._memory, slow_s), daemon=True
            )
            process.start()
            self._forked.append(process)


def _rank(
    ticket: RankTicket,
    environment: dict[str, str],
    folder: Path | None,
    trouble: str,
    slow_load_s: float,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from isobit.kernels.gpu.device import Gpu
    from isobit.kernels.gpu.simulated.card import SimulatedCard
    from isobit.kernels.gpu.simulated.interpreter import install
    from isobit.runtime import worker
    from isobit.runtime.rank_process import run_rank

    install()

    def open_device(name: str, *, most_rows: int, eager: bool) -> Gpu:
        assert name == "cuda"
        return Gpu(SimulatedCard(), most_rows=most_rows, eager=eager)

    load_rank = worker.load_rank

    def load_slowly(*arguments: Any) -> Any:
        time.sleep(slow_load_s)
        return load_rank(*arguments)

    worker.open_device, worker.load_rank = open_device, load_slowly
    _run_loaded_kernels_alone()
    if folder is not None:
        worker.choose = _chooser(folder, trouble)
    run_rank(ticket)


def _chooser(folder: Path, trouble: str) -> Any:
    import torch
    from isobit.runtime.collectives.cuda.choose import choose_on_cuda
    from isobit.runtime.collectives.cuda.custom import KernelSettings
    from isobit.runtime.collectives.cuda.simulated import FileDriver

    def choose(mode: Any, plan: Any, rank: int, **others: Any) -> Any:
        return choose_on_cuda(
            mode, plan, rank, "", timeout_s=others["timeout_s"], device=torch.device("cpu", rank),
            driver=FileDriver(folder, rank, trouble), settings=KernelSettings(programs=2, block=64),
        )  # fmt: skip

    return choose


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
