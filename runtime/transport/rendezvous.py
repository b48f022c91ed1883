"""Where the ranks of one engine meet to form a gloo group."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from isobit.errors import EnvironmentFault

from . import interfaces
from .process_group import open_set_up_group
from .reachability import check_routes, meet

BACKLOG = 128
STORE_TIMEOUT = timedelta(seconds=120)
BOTH = "cpu:gloo,cuda:nccl"


class Rendezvous:
    """The driver's side. On one host a file in a private folder: nothing listens.

    Across hosts a TCP store that the driver binds on a free port of one address and keeps open,
    so that no port is probed, released and lost.
    """

    def __init__(self, folder: Path, host: str | None) -> None:
        self._store: Any = None
        if host is None:
            self.address = f"file://{folder / 'rendezvous'}"
        else:
            # Left to itself the store would listen on every interface.
            try:
                listener = socket.create_server((host, 0), backlog=BACKLOG)
            except OSError as error:
                raise EnvironmentFault(
                    "E-DRIVER-LISTEN",
                    f"the driver cannot listen for its ranks at {host}: {error.strerror or error}",
                ) from error
            port = listener.getsockname()[1]
            self._store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
                host,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=STORE_TIMEOUT,
                master_listen_fd=listener.detach(),
            )
            self.address = f"tcp://{host}:{port}"


def join(
    address: str,
    rank: int,
    degree: int,
    timeout_s: float = 60.0,
    hosts: Sequence[str] = (),
    cuda: bool = False,
    set_up_timeout_s: float | None = None,
) -> interfaces.Route | None:
    """Join the default gloo group of an engine (a group of one needs none) over one interface.

    A collective of the group waits `timeout_s` for the other ranks; meeting here, and everything
    ranks agree on before the first step, `set_up_timeout_s`: ranks load and compile each at its own
    pace. `hosts` names the host of every rank; ways between different ones are tried first. Raises
    EnvironmentFault E-NET-INTERFACE,
    E-NET-DRIVER or E-NET-ROUTE where the network does not serve, RankFault E-RANK-TIMEOUT where
    ranks do not come.

    With `cuda`, tensors on CUDA devices go through NCCL, which starts at the first of them.
    """
    if degree == 1:
        return None
    across = address.startswith("tcp://")
    host, port = interfaces.split(address) if across else (interfaces.LOOPBACK, 0)
    route = interfaces.use_route(host)
    if across:
        interfaces.check_reachable(host, port)
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            host, port, is_master=False, timeout=STORE_TIMEOUT
        )
    else:
        store = dist.FileStore(  # pyright: ignore[reportPrivateImportUsage]
            address.removeprefix("file://"), degree
        )
    meet(store, rank, degree, set_up_timeout_s)
    if len(set(hosts)) > 1:
        check_routes(store, rank, hosts, route.address)
    dist.init_process_group(
        BOTH if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=degree,
        timeout=timedelta(seconds=timeout_s),
    )
    if set_up_timeout_s is not None:
        open_set_up_group(set_up_timeout_s)
    return route
