"""Noticing that a host is gone: its Ray is asked for a connection, again and again.

Ray itself gives a node up 64 seconds after its cable was cut, unless the whole cluster was started
with other settings. Opening a TCP connection costs next to nothing and tells within seconds.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping

Door = tuple[str, int]
"""Address and port of a raylet, or of the head."""

ASK_EVERY_S = 1.0
CONNECT_S = 2.0
LOST_AFTER_S = 5.0


def silence(door: Door) -> str | None:
    """Why no connection to an address and port can be opened, or None when one can."""
    try:
        socket.create_connection(door, timeout=CONNECT_S).close()
    except OSError as error:
        return str(error.strerror or error).lower()
    return None


class HostWatch:
    """Asks every door in a thread of its own until it is closed."""

    def __init__(self, doors: Mapping[str, Door]) -> None:
        """`doors` by the names that `lost` uses."""
        self._doors = dict(doors)
        self._closed = threading.Event()
        self._lost: dict[str, str] = {}
        for name in doors:
            threading.Thread(target=self._ask, args=(name,), daemon=True).start()

    def lost(self) -> dict[str, str]:
        """Who has not answered for LOST_AFTER_S, and why."""
        return dict(self._lost)

    def ask(self, name: str) -> bool:
        """Ask one door at once; True, and remembered, when nobody listens there any more."""
        if name not in self._lost and (reason := silence(self._doors[name])) is not None:
            self._lost[name] = reason
        return name in self._lost

    def close(self) -> None:
        self._closed.set()

    def _ask(self, name: str) -> None:
        heard = time.monotonic()
        while not self._closed.wait(ASK_EVERY_S):
            asked = time.monotonic()
            reason = silence(self._doors[name])
            if reason is None:
                heard = asked
            elif time.monotonic() - heard > LOST_AFTER_S:
                self._lost[name] = reason
                return
