"""Whether the hosts of a run can open connections to each other, tried before gloo or NCCL do.

Those would wait for minutes and then name an address at best.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

from isobit.errors import EnvironmentFault, RankFault

ALL_HERE_S = 120.0
"""Importing torch from a cold disk takes this long at worst."""
TRY_S = 5.0
ANSWERS_S = 20.0
KEY_BYTES = 16


def meet(store: Any, rank: int, degree: int, seconds: float | None = None) -> None:
    """Wait until every rank has come to the store.

    Raises RankFault E-RANK-TIMEOUT naming those that have not within `seconds` (ALL_HERE_S unless
    given).
    """
    seconds = ALL_HERE_S if seconds is None else seconds
    store.set(f"here/{rank}", "")
    keys = [f"here/{other}" for other in range(degree)]
    try:
        store.wait(keys, timedelta(seconds=seconds))
    except RuntimeError as error:
        late = [f"rank {other}" for other, key in enumerate(keys) if not store.check([key])]
        raise RankFault(
            "E-RANK-TIMEOUT", f"{', '.join(late)}: not here within {seconds:.0f} s of the others"
        ) from error


def check_routes(store: Any, rank: int, hosts: Sequence[str], address: str) -> None:
    """Have the first rank of every host connect to that of every other host, all at once.

    `hosts` names the host of every rank; `address` is this rank's, which others are to use. Every
    rank makes this call. Raises EnvironmentFault E-NET-ROUTE, on every rank alike, naming every
    direction that is closed, with the address and port that were tried.
    """
    first = {host: hosts.index(host) for host in hosts}
    if first[hosts[rank]] == rank:
        closed = _try_all(store, hosts[rank], first, address)
        store.set(f"routes/closed/{rank}", json.dumps(closed))
    lines: list[str] = []
    for other in first.values():
        lines += json.loads(_get(store, f"routes/closed/{other}"))
    if lines:
        directions = len(first) * (len(first) - 1)
        raise EnvironmentFault(
            "E-NET-ROUTE",
            f"{len(lines)} of {directions} ways between {len(first)} hosts are closed\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nRanks connect to each other on ports that the system chooses: open TCP between "
            "these hosts, or name an interface that they share in GLOO_SOCKET_IFNAME",
        )


def _try_all(store: Any, host: str, first: dict[str, int], address: str) -> list[str]:
    """What is closed from this host to others."""
    key = secrets.token_hex(KEY_BYTES)
    try:
        listener = socket.create_server((address, 0), backlog=len(first))
    except OSError as error:
        store.set(f"routes/door/{first[host]}", json.dumps(None))
        store.set(f"routes/tried/{first[host]}", "")
        return [f"{host} cannot listen at {address}: {error.strerror or error}"]
    with listener, ThreadPoolExecutor(len(first) + 1) as pool:
        door = [*listener.getsockname(), key]
        store.set(f"routes/door/{first[host]}", json.dumps(door))
        answering = pool.submit(_answer, listener, key.encode())
        others = {name: rank for name, rank in first.items() if name != host}
        doors = {n: json.loads(_get(store, f"routes/door/{r}")) for n, r in others.items()}
        tried = {n: pool.submit(_knock, *door) for n, door in doors.items() if door is not None}
        closed = [
            f"{host} to {name}, from {address} to {doors[name][0]}:{doors[name][1]}: {wrong}"
            for name, attempt in tried.items()
            if (wrong := attempt.result())
        ]
        store.set(f"routes/tried/{first[host]}", "")
        # The door stays open until everybody has tried it.
        for other in others.values():
            _get(store, f"routes/tried/{other}")
        listener.shutdown(socket.SHUT_RDWR)
        answering.result()
    return closed


def _answer(listener: socket.socket, key: bytes) -> None:
    """Show the key to whoever connects, until the listener is shut down."""
    with suppress(OSError):
        while True:
            visitor, _ = listener.accept()
            with visitor, suppress(OSError):
                visitor.sendall(key)


def _knock(address: str, port: int, key: str) -> str:
    """What is wrong with the way to a door, or nothing."""
    try:
        with socket.create_connection((address, port), timeout=TRY_S) as connection:
            shown = b""
            while len(shown) < len(key) and (more := connection.recv(len(key) - len(shown))):
                shown += more
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "" if shown == key.encode() else "another machine has this address"


def _get(store: Any, key: str) -> bytes:
    try:
        store.wait([key], timedelta(seconds=ANSWERS_S))
    except RuntimeError as error:
        raise RankFault(
            "E-RANK-TIMEOUT", f"{key}: another host did not say within {ANSWERS_S:.0f} s"
        ) from error
    return store.get(key)
