"""The link on one host: a stream for each rank, and no thread beside the two that speak.

The threads of a message library would want the cores that ranks compute on, several times a step.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobit.errors import EnvironmentFault, RankFault

from . import wire
from .frames import BrokenStream, FrameReader, framed
from .greeting import greeted, greeting
from .messages import DriverGone, name_ranks
from .processes import peer_process, process_is_stopped
from .ticket import RankTicket

SCHEME = "unix:"
MOST_GREETING_BYTES = 4096
GREETING_S = 30.0
"""How long whoever connects may take to greet; a rank does so at once."""
MOST_SILENT = 64
"""How many connections may not have greeted yet, beside one for every rank."""
STOPPED_S = 15.0
"""For how long a process may be stopped before it is no rank any more: longer than its peers wait
in a collective, whose message says more."""
LAST_WORDS_S = 10.0
"""How long a launcher may take to say how a rank ended before its closed stream is the reason."""


class _Peer:
    """The driver's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.reader = FrameReader(connection, MOST_GREETING_BYTES)
        self.rank: int | None = None
        self.since = time.monotonic()
        self.pid: int | None = None
        self.unsent = bytearray()


class UnixDriver:
    """The driver's end of the streams of all ranks."""

    longest_silence_s = 0.0

    def __init__(self, folder: Path, degree: int, secret: str) -> None:
        """Listen in a folder; raises OSError when that cannot be."""
        path = str(folder / "driver")
        self.endpoint = SCHEME + path
        self._degree, self._secret = degree, secret
        self._peers: dict[int, _Peer] = {}
        self._ranks: dict[int, _Peer] = {}
        self._closed: dict[int, float] = {}
        self._stopped: dict[int, float] = {}
        self._received: deque[tuple[int, dict[str, Any]]] = deque()
        self._poll = select.poll()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            self._listener.bind(path)
            self._listener.listen()
        except OSError:
            self._listener.close()
            raise
        self._poll.register(self._listener, select.POLLIN)

    def keys(self) -> dict[str, str]:
        """None: nobody else gets to the socket."""
        return {}

    def send(self, rank: int, data: bytes) -> None:
        peer = self._ranks.get(rank)
        if peer is None:
            if rank in self._closed:
                return  # whoever waits for the answer says how the rank was lost
            raise RankFault("E-RANK-DIED", f"rank {rank} cannot be reached: it has not connected")
        waits = bool(peer.unsent)
        peer.unsent += framed(data)
        if not waits:
            self._flush(peer)

    def receive(self, timeout_ms: int) -> tuple[int, dict[str, Any]] | None:
        deadline = time.monotonic() + timeout_ms / 1000
        while not self._received:
            left_ms = (deadline - time.monotonic()) * 1000
            for descriptor, event in self._poll.poll(max(0.0, left_ms)):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif (peer := self._peers.get(descriptor)) is not None:
                    self._attend(peer, event)
            if len(self._peers) > len(self._ranks):
                self._drop_silent()
            if left_ms <= 0 and not self._received:
                return None
        return self._received.popleft()

    def lost(self, missing: set[int], hosts: Sequence[str], what: str) -> RankFault | None:
        """E-RANK-DIED for ranks that have closed their streams and whose end nobody has noticed,
        E-RANK-STOPPED for those whose processes have been stopped for a while."""
        now = time.monotonic()
        self._stopped = {
            rank: self._stopped.get(rank, now)
            for rank in missing & set(self._ranks)
            if process_is_stopped(self._ranks[rank].pid)
        }
        if any(now - since > STOPPED_S for since in self._stopped.values()):
            how = {
                rank: f"is stopped: `kill -CONT {self._ranks[rank].pid}` would let it go on"
                for rank in self._stopped
            }
            return RankFault("E-RANK-STOPPED", name_ranks(how, what))
        gone = {r for r in missing & set(self._closed) if now - self._closed[r] > LAST_WORDS_S}
        if not gone:
            return None
        return RankFault("E-RANK-DIED", name_ranks(dict.fromkeys(gone, "has hung up"), what))

    def close(self) -> None:
        for peer in self._peers.values():
            peer.socket.close()
        self._peers.clear()
        self._ranks.clear()
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # whoever it was has gone again
            return
        peer = _Peer(connection)
        self._peers[connection.fileno()] = peer
        self._poll.register(connection, select.POLLIN)

    def _drop_silent(self) -> None:
        """Hang up on who has not greeted in time, and on the first of too many."""
        silent = [peer for peer in self._peers.values() if peer.rank is None]
        now, many = time.monotonic(), len(silent) - MOST_SILENT - self._degree
        for number, peer in enumerate(silent):
            if number < many or now - peer.since > GREETING_S:
                self._drop(peer)

    def _attend(self, peer: _Peer, event: int) -> None:
        """Read from a peer, or send it what it had no room for. A peer that breaks a rule goes."""
        if event & select.POLLOUT:
            self._flush(peer)
        if not event & ~select.POLLOUT:
            return
        try:
            peer.reader.read()
            while (data := peer.reader.take()) is not None:
                self._take(peer, wire.decode(data))
        except (BrokenStream, ValueError):
            self._drop(peer)

    def _take(self, peer: _Peer, message: dict[str, Any]) -> None:
        """Pass on a message of a rank; raises ValueError for whoever is none."""
        if peer.rank is None:
            rank = greeted(message, self._secret, self._degree)
            if rank is None or rank in self._ranks or rank in self._closed:
                raise ValueError("no rank of this driver")
            peer.rank, self._ranks[rank] = rank, peer
            peer.pid = peer_process(peer.socket)
            peer.reader.most_bytes = wire.MOST_MESSAGE_BYTES
        self._received.append((peer.rank, message))

    def _flush(self, peer: _Peer) -> None:
        """Send what the peer takes now, the rest when it has room again: nothing waits for it."""
        try:
            del peer.unsent[: peer.socket.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            # Its last words may still be there to be read: they tell of its end as well.
            peer.unsent.clear()
        events = select.POLLIN | (select.POLLOUT if peer.unsent else 0)
        self._poll.modify(peer.socket, events)

    def _drop(self, peer: _Peer) -> None:
        self._poll.unregister(peer.socket)
        del self._peers[peer.socket.fileno()]
        peer.socket.close()
        if peer.rank is not None:
            del self._ranks[peer.rank]
            self._closed[peer.rank] = time.monotonic()


class UnixRank:
    """A rank's end."""

    def __init__(self, ticket: RankTicket) -> None:
        """Connect and greet; raises EnvironmentFault E-NET-DRIVER when no driver listens."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(ticket.endpoint.removeprefix(SCHEME))
        except OSError as error:
            self._socket.close()
            raise EnvironmentFault(
                "E-NET-DRIVER", f"rank {ticket.rank}: no driver at {ticket.endpoint}: {error}"
            ) from error
        self._reader = FrameReader(self._socket, wire.MOST_MESSAGE_BYTES)
        self._held = bytearray()
        self.send(greeting(ticket))

    def hold(self, message: dict[str, Any]) -> None:
        self._held += framed(wire.encode(message))

    def flush(self) -> None:
        # Where the driver has gone, receive finds what it said last, and then its end.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(self._held)
        self._held.clear()

    def send(self, message: dict[str, Any]) -> None:
        self.hold(message)
        self.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the next message; raises DriverGone."""
        try:
            while (data := self._reader.take()) is None:
                self._reader.read()
        except BrokenStream as error:
            raise DriverGone from error
        return wire.decode(data)

    def end_with_driver(self) -> None:
        """Nothing to do: receive notices."""

    def close(self) -> None:
        self._socket.close()
