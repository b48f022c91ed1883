"""Noticing over TCP that the other end of a link is gone, however busy this end is.

The thread of ZeroMQ sends and answers heartbeats without the interpreter's lock: a rank is heard
while it loads or computes. A stopped process is not, nor a host without a cable.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from isobit.errors import RankFault

from .messages import DriverGone

EVERY_MS = 250
SILENT_MS = 8000
LAST_WORDS_S = 1.0
"""How long a launcher may take to say how a rank ended before its host is blamed."""
DRIVER_RETURNS_S = 5.0


def longest_silence_s() -> float:
    """After how many seconds at most it is known that a rank is lost."""
    return (SILENT_MS + EVERY_MS) / 1000 + LAST_WORDS_S


def beat(socket: zmq.Socket[Any]) -> None:
    """Send heartbeats on every connection of a socket and close those that do not answer."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, EVERY_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)


class Disconnections:
    """Whether connections of a socket have ended; used by the thread that uses the socket."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        self._watched = socket
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def any(self) -> bool:
        """Whether any connection has ended since the last call."""
        found = False
        while self._monitor.poll(0):
            recv_monitor_message(self._monitor)
            found = True
        return found

    def close(self) -> None:
        self._watched.disable_monitor()
        self._monitor.close(linger=0)


class DriverWatch:
    """Ends this process when the driver has gone for good: nobody else would, on another host."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        self._watched = socket
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_MONITOR_STOPPED
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._watched.disable_monitor()
        self._thread.join()

    def _run(self) -> None:
        gone: float | None = None
        while True:
            if self._monitor.poll(EVERY_MS):
                event = recv_monitor_message(self._monitor)["event"]
                if event == zmq.EVENT_MONITOR_STOPPED:
                    break
                gone = None if event == zmq.EVENT_HANDSHAKE_SUCCEEDED else time.monotonic()
            if gone is not None and time.monotonic() - gone > DRIVER_RETURNS_S:
                sys.stderr.write(f"isobit: {DriverGone()}\n")
                sys.stderr.flush()
                os._exit(1)
        self._monitor.close(linger=0)


def lost(ranks: Collection[int], hosts: Sequence[str], what: str) -> RankFault:
    """E-HOST-LOST for ranks that are not heard any more; `hosts` names the host of every rank."""
    lines = [f"{what}: connections were closed, or gave no heartbeat for {SILENT_MS / 1000:g} s"]
    for host in dict.fromkeys(hosts[rank] for rank in sorted(ranks)):
        all_there = [rank for rank, name in enumerate(hosts) if name == host]
        silent = [rank for rank in all_there if rank in ranks]
        if silent == all_there:
            lines.append(
                f"  host {host} with {name_list(silent)} is lost: look at its power, its cable and "
                "the way to it"
            )
        else:
            lines.append(
                f"  {name_list(silent)} on host {host}, whose other ranks answer: look whether the "
                "process was stopped or killed"
            )
    if len(set(ranks)) == len(hosts):
        lines.append("  All ranks: this process was stopped, or its own network is down")
    lines.append("All ranks have been ended. Start again once the host answers, or without it")
    return RankFault("E-HOST-LOST", "\n".join(lines))


def name_list(ranks: Sequence[int]) -> str:
    """As in "rank 2" and "ranks 2, 3"."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
