"""Where the ranks of one engine meet to form a gloo group."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

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
            listener = socket.create_server((host, 0), backlog=BACKLOG)
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


def join(address: str, rank: int, degree: int, timeout_s: float = 60.0, cuda: bool = False) -> None:
    """Join the default group of an engine, over gloo; a group of one needs none.

    An operation of the group waits `timeout_s` for the other ranks. With `cuda`, tensors on CUDA
    devices go through NCCL, which starts at the first of them.
    """
    if degree == 1:
        return
    if address.startswith("tcp://"):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            host, int(port), is_master=False, timeout=STORE_TIMEOUT
        )
    else:
        store = dist.FileStore(  # pyright: ignore[reportPrivateImportUsage]
            address.removeprefix("file://"), degree
        )
    dist.init_process_group(
        BOTH if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=degree,
        timeout=timedelta(seconds=timeout_s),
    )
