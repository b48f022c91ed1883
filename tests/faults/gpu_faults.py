"""Faults of GPUs for a rehearsed ladder: `ISOBIT_GPU_FAULT=tests.faults.gpu_faults:seed` puts one
into each step that FAULTS names."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch

from isobit.kernels.gpu.simulated.card import SimulatedCard
from isobit.launch.gpu_check import attention, models, products, sums
from isobit.launch.gpu_check.child import FaultPoint
from isobit.runtime.collectives.cuda.custom import CustomCollectives
from isobit.runtime.collectives.cuda.gather import CudaGatherCollectives
from isobit.runtime.collectives.cuda.simulated import FileDriver


def seed(point: FaultPoint) -> None:
    if point.step in FAULTS:
        FAULTS[point.step](point)


def library_missing(_: FaultPoint) -> None:
    """As where triton's libcuda is not to be found."""
    raise OSError("libcuda.so.1: cannot open shared object file")


def tail_dropped(_: FaultPoint) -> None:
    """A kernel that leaves out the last features of K."""
    true = products.product

    def product(x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        short = x.clone()
        short[:, -16:] = 0
        return true(short, *others, **named)

    products.product = product


def rows_differ(_: FaultPoint) -> None:
    """Another order of additions from two rows on."""
    true = products.product

    def product(x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        out = true(x, *others, **named)
        return out if len(x) == 1 else torch.nextafter(out, torch.tensor(torch.inf))

    products.product = product


def ranks_differ(_: FaultPoint) -> None:
    """A tree that is not the contract's."""
    true = products.sum_root

    def sum_root(places: Any, sums: Any, atoms: int) -> torch.Tensor:
        return true(places, sums, atoms) if len(sums) == 1 else torch.stack(list(sums)).sum(0)

    products.sum_root = sum_root


def split_differs(_: FaultPoint) -> None:
    """Attention whose parts are put together in another way."""
    true = attention.attention_work

    def attention_work(*others: Any, split: bool, **named: Any) -> Any:
        work = true(*others, split=split, **named)
        if split:
            out, launches = others[2], list(work.launches)
            last = launches[-1]
            run = last.run
            object.__setattr__(last, "run", lambda: (run(), out.add_(0.01)))
        return work

    attention.attention_work = attention_work


def hangs(_: FaultPoint) -> None:
    """A kernel that never ends."""
    time.sleep(3600)


def model_wrong(_: FaultPoint) -> None:
    """A model on the GPU that is not the one in the file."""
    true = models.open_decoder

    def open_decoder(*others: Any, **named: Any) -> Any:
        decoder = true(*others, **named)
        run = decoder.forward
        decoder.forward = lambda step: tuple(each.flip(-1) for each in run(step))
        return decoder

    models.open_decoder = open_decoder


def replay_stale(_: FaultPoint) -> None:
    """A graph that was captured over a copy of its inputs: later ones do not arrive."""
    true = SimulatedCard.upload

    def upload(card: SimulatedCard, host: torch.Tensor, there: torch.Tensor) -> None:
        if not card.graphs:
            true(card, host, there)

    SimulatedCard.upload = upload


def sum_stale(_: FaultPoint) -> None:
    """A sum that still holds what the call before it left."""
    true, kept = CustomCollectives.all_reduce, []

    def all_reduce(self: Any, nodes: torch.Tensor, out: torch.Tensor, site: str) -> None:
        true(self, nodes, out, site)
        kept.append(out.clone())
        if len(kept) > 1 and kept[-2].shape == out.shape:
            out.copy_(kept[-2])

    CustomCollectives.all_reduce = all_reduce


def peers_lie(_: FaultPoint) -> None:
    """What one GPU writes never arrives in the other, although CUDA says that it does."""
    sums.TIMEOUT_S = 3.0
    true = FileDriver.__init__

    def made(self: FileDriver, folder: Any, rank: int, *_: Any) -> None:
        true(self, folder, rank, "blind")

    FileDriver.__init__ = made


def rank_dies(point: FaultPoint) -> None:
    """One rank is gone: the other one must not wait for ever."""
    if point.place.rank == 1:
        os.kill(os.getpid(), signal.SIGSEGV)


def nccl_wrong(_: FaultPoint) -> None:
    """NCCL gathers nothing."""
    CudaGatherCollectives.all_reduce = lambda self, nodes, out, site: None


def device_lost(_: FaultPoint) -> None:
    """As torch says it when the GPU has fallen off the bus."""
    raise torch.AcceleratorError("CUDA error: GPU is lost", 0)


def dies(_: FaultPoint) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[FaultPoint], None]] = {
    "build": library_missing,
    "product": tail_dropped,
    "row-bits": rows_differ,
    "tp-bits": ranks_differ,
    "attention": split_differs,
    "other-ops": hangs,
    "model": model_wrong,
    "graph": replay_stale,
    "host-memory": sum_stale,
    "peer-memory": peers_lie,
    "sum-graph": rank_dies,
    "nccl": nccl_wrong,
    "bandwidth": device_lost,
    "all-weights": dies,
}
