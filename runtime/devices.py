"""On what ranks compute: what was asked for, what there is, and the device of a rank's process."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch

from isobit.errors import EnvironmentFault, InputError

from ..kernels.backend import cuda
from ..kernels.device import HOST, AnyWeight, Device
from .checked_gpus import why_not_passed
from .transport.ticket import RankTicket

log = logging.getLogger("isobit.runtime")

CPU, CUDA = "cpu", "cuda"
WITHOUT_CARD = "torch sees no CUDA device here. Run with --device cpu"


def resolve_device(asked: str, ranks: int | None = None) -> str:
    """What `auto`, `cpu`, `cuda` or `cuda:I,cuda:J,...` comes to on this machine.

    "auto" takes cuda where `isobit gpu check` has passed on the GPUs that torch sees, and there is
    one for each of `ranks`, where that is known; where GPUs are left idle a warning says why.
    Raises InputError E-DEVICE for another name, EnvironmentFault E-DEVICE-NONE for cuda where there
    is no card.
    """
    if asked == "auto":
        if not torch.cuda.is_available():
            return CPU
        count = torch.cuda.device_count()
        reason = why_not_passed()
        if not reason and ranks is not None and ranks > count:
            reason = f"{ranks} ranks, {count} GPUs (ranks share one with --device cuda:0,cuda:0)"
        if reason:
            log.warning("--device auto: CPU, not the GPUs: %s", reason)
            return CPU
        log.info("device: cuda, %d visible to torch", count)
        return CUDA
    device_names(asked, 1 + asked.count(","))
    if asked.startswith(CUDA) and not torch.cuda.is_available():
        raise EnvironmentFault("E-DEVICE-NONE", f"--device {asked}: {WITHOUT_CARD}")
    return asked


def refuse_cuda(asked: str, command: str, instead: str = "run with --device cpu") -> None:
    """For what runs on CPUs alone: raises InputError E-DEVICE-SETTING for a GPU that was asked for,
    E-DEVICE for no device. "auto" is the CPU, and a warning says so where there are GPUs."""
    if asked == "auto":
        if torch.cuda.is_available():
            log.warning("--device auto: CPU, not the GPUs: %s has no CUDA path", command)
        return
    device_names(asked, 1 + asked.count(","))
    if asked.startswith(CUDA):
        raise InputError(
            "E-DEVICE-SETTING", f"--device {asked}: {command} runs on CPUs alone; {instead}"
        )


def device_names(device: str, degree: int) -> list[str]:
    """The device of each rank: "cpu", "cuda" where the launcher is to choose, or "cuda:I".

    Raises InputError E-DEVICE for what names no devices, or not as many as there are ranks.
    """
    if device in (CPU, CUDA):
        return [device] * degree
    names = device.split(",")
    if not all(_index(name) is not None for name in names):
        raise InputError(
            "E-DEVICE", f"--device {device!r}: expected auto, cpu, cuda, or as cuda:0,cuda:1"
        )
    if len(names) != degree:
        raise InputError("E-DEVICE", f"--device {device}: {len(names)} devices, {degree} ranks")
    return names


def on_this_machine(tickets: Sequence[RankTicket]) -> list[RankTicket]:
    """Tickets of ranks that all run here: rank r of those with "cuda" gets cuda:r.

    Raises EnvironmentFault E-DEVICE-COUNT where that many cards are not there.
    """
    if all(ticket.device == CPU for ticket in tickets):
        return list(tickets)
    count = torch.cuda.device_count()
    placed = [
        dataclasses.replace(ticket, device=f"cuda:{ticket.rank}")
        if ticket.device == CUDA
        else ticket
        for ticket in tickets
    ]
    wrong = [f"rank {t.rank}: {t.device}" for t in placed if (_index(t.device) or 0) >= count]
    if wrong:
        raise EnvironmentFault(
            "E-DEVICE-COUNT",
            f"{count} CUDA devices are visible here, none for {', '.join(wrong)}. Run fewer ranks, "
            "or let ranks share GPUs: --device cuda:0,cuda:0",
        )
    return placed


def open_device(name: str, *, most_rows: int, eager: bool) -> Device[AnyWeight]:
    """The device of this process; "cuda" alone is the first that it sees.

    Raises EnvironmentFault E-DEVICE-NONE where there is none, E-KERNEL-MISSING without triton,
    E-KERNEL-ARCH for a card without kernels, E-DEVICE-OPEN where CUDA does not give it to this
    process.
    """
    if name == CPU:
        return HOST
    if not torch.cuda.is_available():
        raise EnvironmentFault("E-DEVICE-NONE", f"this rank was given {name}: {WITHOUT_CARD}")
    cuda()
    from ..kernels.gpu.card import CudaCard
    from ..kernels.gpu.device import Gpu

    try:
        card = CudaCard(_index(name) or 0)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise EnvironmentFault("E-DEVICE-OPEN", f"{name} cannot be used: {said}") from error
    return Gpu(card, most_rows=most_rows, eager=eager)


def _index(name: str) -> int | None:
    kind, _, index = name.partition(":")
    return int(index) if kind == CUDA and index.isdecimal() else None
