"""The link between hosts: ZeroMQ with CURVE, one ROUTER socket, one DEALER for each rank."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from typing import Any

import zmq

from isobit.errors import RankFault

from . import heartbeat, wire
from .greeting import KIND, greeted, greeting
from .heartbeat import Disconnections, DriverWatch, beat
from .ticket import RankTicket

HANDSHAKE_MS = 10_000
"""How long whoever connects may take to show the keys of a ticket."""


class TcpDriver:
    """The driver's end: listens at one address of this host, encrypted."""

    def __init__(self, host: str, degree: int, secret: str) -> None:
        """Raises OSError when this host cannot listen there."""
        self._degree, self._secret = degree, secret
        self._ranks = {_identity(rank, secret): rank for rank in range(degree)}
        self._identities = list(self._ranks)
        self._greeted: set[int] = set()
        self._lost: dict[int, float] = {}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MOST_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._server_key, private = zmq.curve_keypair()
        self._socket.curve_server = True
        self._socket.curve_secretkey = private
        beat(self._socket)
        self._disconnections = Disconnections(self._socket)
        try:
            self._socket.bind(f"tcp://{host}:*")
        except zmq.ZMQError as error:
            self.close()
            raise OSError(str(error)) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def longest_silence_s(self) -> float:
        return heartbeat.longest_silence_s()

    def keys(self) -> dict[str, str]:
        public, private = zmq.curve_keypair()
        return {
            "server_key": self._server_key.decode(),
            "public_key": public.decode(),
            "secret_key": private.decode(),
        }

    def send(self, rank: int, data: bytes) -> None:
        try:
            self._socket.send_multipart([self._identities[rank], data])
        except zmq.ZMQError as error:
            if rank not in self._greeted:
                raise RankFault("E-RANK-DIED", f"rank {rank} cannot be reached: {error}") from error
            # Whoever waits for the answer says how the rank was lost.
            self._lost.setdefault(rank, time.monotonic())

    def receive(self, timeout_ms: int) -> tuple[int, dict[str, Any]] | None:
        if not self._socket.poll(timeout_ms):
            return None
        frames = self._socket.recv_multipart()
        rank = self._ranks.get(frames[0])
        if rank is None:
            return None
        try:
            message = wire.decode(frames[-1])
        except ValueError:
            return None
        if message.get("kind") == KIND:
            if greeted(message, self._secret, self._degree) != rank:
                return None
            self._greeted.add(rank)
        return (rank, message) if rank in self._greeted else None

    def lost(self, missing: set[int], hosts: Sequence[str], what: str) -> RankFault | None:
        """E-HOST-LOST for ranks whose connection has ended and whose launcher is silent."""
        now = time.monotonic()
        if self._disconnections.any():
            for rank in self._greeted - set(self._lost):
                try:
                    self._socket.send_multipart([self._identities[rank], b""], zmq.NOBLOCK)
                except zmq.Again:
                    continue
                except zmq.ZMQError:
                    self._lost[rank] = now
        if any(now - self._lost.get(rank, now) > heartbeat.LAST_WORDS_S for rank in missing):
            return heartbeat.lost(set(self._lost) & missing, hosts, what)
        return None

    def close(self) -> None:
        self._disconnections.close()
        self._socket.close()
        self._context.term()


class TcpRank:
    """A rank's end."""

    def __init__(self, ticket: RankTicket) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.IDENTITY, _identity(ticket.rank, ticket.secret))
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MOST_MESSAGE_BYTES)
        self._held: list[bytes] = []
        self._watch: DriverWatch | None = None
        beat(self._socket)
        if ticket.server_key:
            self._socket.curve_serverkey = ticket.server_key.encode()
            self._socket.curve_publickey = ticket.public_key.encode()
            self._socket.curve_secretkey = ticket.secret_key.encode()
        self._socket.connect(ticket.endpoint)
        self.send(greeting(ticket))

    def hold(self, message: dict[str, Any]) -> None:
        self._held.append(wire.encode(message))

    def flush(self) -> None:
        for data in self._held:
            self._socket.send(data)
        self._held.clear()

    def send(self, message: dict[str, Any]) -> None:
        self.hold(message)
        self.flush()

    def receive(self) -> dict[str, Any]:
        # An empty message only asks whether this rank is there.
        while not (data := self._socket.recv()):
            pass
        return wire.decode(data)

    def end_with_driver(self) -> None:
        if self._watch is None:
            self._watch = DriverWatch(self._socket)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._socket.close()
        self._context.term()


def _identity(rank: int, secret: str) -> bytes:
    """The name under which the driver knows a connection. Only who has a ticket can form it: the
    first to take a name keeps it, and would keep the rank out."""
    return hmac.new(secret.encode(), str(rank).encode(), hashlib.sha256).digest()
