"""Where ranks run: as plain processes of this host, or placed by Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

import torch

from isobit.errors import InputError

from ..runtime.devices import CUDA, resolve_device
from ..runtime.ranks.launcher import Launcher, LocalLauncher
from .cluster.ray.launcher import RayLauncher
from .cluster.ray.session import ray_session


class LauncherName(StrEnum):
    AUTO = "auto"
    RAY = "ray"
    LOCAL = "local"


def launcher_name(text: str) -> LauncherName:
    """The launcher of that name; raises InputError E-USAGE."""
    if text not in tuple(LauncherName):
        raise InputError("E-USAGE", f"launcher {text!r}: expected {', '.join(LauncherName)}")
    return LauncherName(text)


def chosen_device(
    device: str, launcher: LauncherName, ray_address: str | None, most_ranks: int
) -> str:
    """The device to run `most_ranks` on; raises as `resolve_device`, and InputError E-USAGE for
    cards that a launcher would choose itself. An existing Ray cluster may have cards where this
    machine has none."""
    cluster = cluster_address(launcher, ray_address)
    if device == CUDA and cluster is not None:
        return device
    resolved = resolve_device(device, most_ranks if cluster is None else None)
    if ":" in resolved and (launcher is LauncherName.RAY or cluster is not None):
        raise InputError(
            "E-USAGE", f"--device {device}: Ray chooses GPUs itself; add --launcher local"
        )
    return resolved


def cluster_address(name: LauncherName, ray_address: str | None) -> str | None:
    """The Ray cluster to place ranks on: as told, else as RAY_ADDRESS says; None for none.

    Plain processes have no use for RAY_ADDRESS. Raises InputError E-USAGE where they are told one.
    """
    if name is LauncherName.LOCAL:
        if ray_address is not None:
            raise InputError("E-USAGE", "--ray-address has no meaning with --launcher local")
        return None
    return ray_address or os.environ.get("RAY_ADDRESS") or None


def chosen_launcher(
    name: LauncherName, cluster: str | None, most_ranks: int, device: str
) -> LauncherName:
    """What "auto" comes to: plain processes, unless a cluster is named or cards are too few here.

    CPU ranks always fit this host, and cards named one by one are this host's.
    """
    if name is not LauncherName.AUTO:
        return name
    fits = device != CUDA or most_ranks <= torch.cuda.device_count()
    return LauncherName.LOCAL if cluster is None and fits else LauncherName.RAY


@contextmanager
def placed(
    name: LauncherName, ray_address: str | None, most_ranks: int, device: str
) -> Iterator[Callable[[], Launcher]]:
    """Yield a maker of launchers for up to `most_ranks` ranks on `device`; a private Ray lives as
    long as the block. Raises as `cluster_address`."""
    cluster = cluster_address(name, ray_address)
    if chosen_launcher(name, cluster, most_ranks, device) is LauncherName.LOCAL:
        yield LocalLauncher
        return
    with ray_session(cluster, most_ranks):
        yield RayLauncher
