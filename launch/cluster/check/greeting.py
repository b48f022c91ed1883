"""Can one host open a TCP connection to another, how far is it, and what is the time there?"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CONNECT_S = 3.0
EXCHANGES = 16
AT_A_TIME = 8
_TIME = struct.Struct("!q")


class Door:
    """Answers every byte with the time, on a free port of one address, until it is closed."""

    def __init__(self, address: str) -> None:
        self._listener = socket.create_server((address, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # Closing alone leaves the thread in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self._listener.accept()
                threading.Thread(target=_answer, args=(visitor,), daemon=True).start()


def _answer(visitor: socket.socket) -> None:
    with contextlib.suppress(OSError), visitor:
        visitor.settimeout(CONNECT_S)
        while visitor.recv(1):
            visitor.sendall(_TIME.pack(time.time_ns()))


def greet(address: str, port: int) -> dict[str, Any]:
    """Ask a Door for the time again and again; the exchange with the shortest way counts.

    Returns "round_trip_ms" and "offset_ms", how far this host's clock is ahead of that one's: right
    to half the round trip. Or {"error": why}.
    """
    try:
        with socket.create_connection((address, port), timeout=CONNECT_S) as door:
            door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            exchanges = [_exchange(door) for _ in range(EXCHANGES)]
    except OSError as error:
        return {"error": str(error.strerror or error).lower()}
    trip, ahead = min(exchanges)
    return {"round_trip_ms": trip / 1e6, "offset_ms": ahead / 1e6}


def greet_all(doors: list[tuple[str, str, int]]) -> dict[str, Any]:
    """Greet (name, address, port) each, several at a time: those out of reach take seconds."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        answers = pool.map(lambda door: greet(*door[1:]), doors)
        return dict(zip((name for name, _, _ in doors), answers, strict=True))


def _exchange(door: socket.socket) -> tuple[int, int]:
    """Round trip and how far this clock is ahead, in nanoseconds."""
    sent, started = time.time_ns(), time.perf_counter_ns()
    door.sendall(b"?")
    answer = b""
    while len(answer) < _TIME.size:
        part = door.recv(_TIME.size - len(answer))
        if not part:
            raise ConnectionResetError("the connection was closed")
        answer += part
    trip = time.perf_counter_ns() - started
    return trip, sent + trip // 2 - _TIME.unpack(answer)[0]
