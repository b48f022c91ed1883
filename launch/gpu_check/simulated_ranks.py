"""Ranks of an engine as processes on simulated GPUs: kernels are interpreted, gloo is NCCL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...runtime.transport.ticket import RankTicket
from ...runtime.worker.forked_launcher import SERVER, ForkedLauncher

SERVER.set_forkserver_preload(["isobit.launch.gpu_check.preload"])


class SimulatedLauncher(ForkedLauncher):
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
        super().__init__(_simulate, folder, trouble, prepare)

    def launch(self, tickets: list[RankTicket]) -> None:
        assert all(ticket.device == "cuda" for ticket in tickets)
        super().launch(tickets)


def _simulate(
    ticket: RankTicket,
    folder: Path | None,
    trouble: str,
    prepare: Callable[[RankTicket], None] | None,
) -> None:
    from ...kernels.gpu.device import Gpu
    from ...kernels.gpu.simulated.card import SimulatedCard
    from ...kernels.gpu.simulated.interpreter import install
    from ...runtime.worker import worker

    install()

    def open_device(name: str, *, most_rows: int, eager: bool) -> Gpu:
        assert name == "cuda"
        return Gpu(SimulatedCard(), most_rows=most_rows, eager=eager)

    worker.open_device = open_device
    if folder is not None:
        worker.choose = _chooser(folder, trouble)
    if prepare is not None:
        prepare(ticket)


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
