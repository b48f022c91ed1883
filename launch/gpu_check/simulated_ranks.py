"""Ranks of an engine as processes on simulated GPUs: kernels are interpreted, gloo is NCCL."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ...runtime.ranks.launcher import LocalLauncher
from ...runtime.transport.address import Address
from ...runtime.transport.ticket import RankTicket

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["isobit.launch.gpu_check.preload"])


class SimulatedLauncher(LocalLauncher):
    """A launcher of ranks that were told "cuda".

    With a `folder` they choose their collectives as on CUDA; memory of the devices are files there,
    with the `trouble` of FileDriver. Without one they have what `all_reduce` says on CPUs. Each
    calls `prepare` before it becomes a rank.
    """

    def __init__(
        self,
        folder: Path | None = None,
        trouble: str = "",
        prepare: Callable[[RankTicket], None] | None = None,
    ) -> None:
        super().__init__()
        self._arguments = (folder, trouble, prepare)
        self._forked: list[BaseProcess] = []

    def address(self) -> Address:
        return Address()

    def launch(self, tickets: list[RankTicket]) -> None:
        assert all(ticket.device == "cuda" for ticket in tickets)
        for ticket in tickets:
            arguments = (ticket, dict(os.environ), *self._arguments)
            process = SERVER.Process(target=_rank, args=arguments, daemon=True)
            process.start()
            self._forked.append(process)

    def dead(self) -> dict[int, str]:
        return {
            rank: f"ended with status {code}" if code >= 0 else f"was killed by signal {-code}"
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
    folder: Path | None,
    trouble: str,
    prepare: Callable[[RankTicket], None] | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from ...kernels.gpu.device import Gpu
    from ...kernels.gpu.simulated.card import SimulatedCard
    from ...kernels.gpu.simulated.interpreter import install
    from ...runtime.worker import worker
    from ...runtime.worker.process import run_rank

    install()

    def open_device(name: str, *, most_rows: int, eager: bool) -> Gpu:
        assert name == "cuda"
        return Gpu(SimulatedCard(), most_rows=most_rows, eager=eager)

    worker.open_device = open_device
    if folder is not None:
        worker.choose = _chooser(folder, trouble)
    if prepare is not None:
        prepare(ticket)
    run_rank(ticket)


def _chooser(folder: Path, trouble: str) -> Any:
    import torch

    from ...runtime.collectives.cuda.choose import choose_on_cuda
    from ...runtime.collectives.cuda.custom import KernelSettings
    from ...runtime.collectives.cuda.simulated import FileDriver

    def choose(mode: Any, plan: Any, rank: int, **others: Any) -> Any:
        return choose_on_cuda(
            mode, plan, rank, "", timeout_s=others["timeout_s"], device=torch.device("cpu", rank),
            driver=FileDriver(folder, rank, trouble), settings=KernelSettings(programs=2, block=64),
        )  # fmt: skip

    return choose
