"""The wire between the driver and its ranks: one ROUTER socket, one DEALER per rank."""

from __future__ import annotations

import hmac
import os
import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from ..kernels.errors import EnvironmentFault, RankFault
from . import heartbeat, wire
from .heartbeat import Disconnections, DriverWatch, beat, lost
from .ticket import RankTicket

Serve = Callable[[int, dict[str, Any]], dict[str, Any]]
"""`serve(rank, message)`: what is sent back to a rank that wants a piece of a file."""
POLL_MS = 100
DEATH_GRACE_S = 0.5


def private_folder(prefix: str, below: int) -> Path:
    """A new folder that only its owner can open, for sockets whose paths add `below` characters.

    It lies in the system's temporary folder, or in /tmp where that is too long for a Unix socket.
    """
    top = tempfile.gettempdir()
    random_characters = 8
    if len(f"{top}/{prefix}".encode()) + random_characters + below > zmq.IPC_PATH_MAX_LEN:
        top = "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix=prefix, dir=top))


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a driver listens. `host` None means a Unix socket that only its owner can open."""

    host: str | None = None


class DriverLink:
    """The driver's end: sends to ranks by number, collects one answer from each."""

    def __init__(self, degree: int, address: Address) -> None:
        self.degree = degree
        self.folder = private_folder("isobit-", len("/driver"))
        self._secret = secrets.token_hex(16)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MOST_MESSAGE_BYTES)
        self._server_key = b""
        self._greeted: set[int] = set()
        self._early: deque[tuple[int, dict[str, Any]]] = deque()
        self._lost: dict[int, float] = {}
        self._disconnections: Disconnections | None = None
        self.hosts = ["this"] * degree
        """The name of each rank's host, for messages."""
        try:
            self._bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise EnvironmentFault(
                "E-DRIVER-LISTEN",
                f"the driver cannot listen for its ranks at {address.host or 'a socket'}: {error}",
            ) from error

    def _bind(self, address: Address) -> None:
        if address.host is None:
            self.endpoint = f"ipc://{self.folder / 'driver'}"
            self._socket.bind(self.endpoint)
        else:
            public, private = zmq.curve_keypair()
            self._server_key = public
            self._socket.curve_server = True
            self._socket.curve_secretkey = private
            beat(self._socket)
            self._disconnections = Disconnections(self._socket)
            self._socket.bind(f"tcp://{address.host}:*")
            self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def ticket(self, rank: int, device: str = "cpu") -> RankTicket:
        """What rank number `rank` needs to connect."""
        keys: dict[str, str] = {}
        if self._server_key:
            public, private = zmq.curve_keypair()
            keys = {
                "server_key": self._server_key.decode(),
                "public_key": public.decode(),
                "secret_key": private.decode(),
            }
        return RankTicket(
            endpoint=self.endpoint,
            rank=rank,
            degree=self.degree,
            secret=self._secret,
            device=device,
            **keys,
        )

    def send(self, rank: int, message: dict[str, Any]) -> None:
        """Raises RankFault E-RANK-DIED when the rank is gone."""
        self.send_bytes(rank, wire.encode(message))

    def send_bytes(self, rank: int, data: bytes) -> None:
        try:
            self._socket.send_multipart([_identity(rank), data])
        except zmq.ZMQError as error:
            if self._disconnections is not None and rank in self._greeted:
                # Whoever waits for the answer says how the rank was lost.
                self._lost.setdefault(rank, time.monotonic())
                return
            raise RankFault("E-RANK-DIED", f"rank {rank} cannot be reached: {error}") from error

    def collect(
        self,
        kind: str,
        what: str,
        timeout_s: float,
        dead: Callable[[], dict[int, str]],
        stop_at_error: bool,
        serve: Serve | None = None,
    ) -> dict[int, dict[str, Any]]:
        """Wait for one `kind` (or "error") message from every rank.

        `dead` tells which ranks have ended and how. With `stop_at_error` the first error ends the
        wait: the other ranks may be waiting for the one that failed. It ends half a second later,
        because a rank that dies without a word breaks the collectives of the others, and is the
        one to name; over TCP as late as the last heartbeat may be. What a rank sends after its
        answer is kept for the next call. Ranks that want pieces of files get them from `serve`;
        each piece grants all another `timeout_s`. Raises RankFault E-RANK-DIED, E-HOST-LOST or
        E-RANK-TIMEOUT naming the ranks.
        """
        answers: dict[int, dict[str, Any]] = {}
        early, self._early = self._early, deque()
        deadline = time.monotonic() + timeout_s
        failed = False
        gone: dict[int, str] = {}
        while len(answers) < self.degree:
            received = early.popleft() if early else self._receive(POLL_MS)
            if received is None:
                missing = set(range(self.degree)) - set(answers)
                # A rank may have ended just after its last words: blamed after another look.
                if gone := {rank: gone[rank] for rank in gone if rank in missing}:
                    raise RankFault("E-RANK-DIED", name_ranks(gone, what))
                gone = {rank: how for rank, how in dead().items() if rank in missing}
                if gone:
                    continue
                self._raise_lost(missing, what)
                if time.monotonic() > deadline:
                    if failed:
                        return answers
                    raise RankFault(
                        "E-RANK-TIMEOUT",
                        f"{what}: no answer within {timeout_s:.0f} s from "
                        + ", ".join(f"rank {rank}" for rank in sorted(missing)),
                    )
                continue
            rank, message = received
            if rank in answers:
                self._early.append(received)
                continue
            if message.get("kind") == "error":
                answers[rank] = message
                if stop_at_error and not failed:
                    failed, deadline = True, time.monotonic() + self._grace_s
            elif message.get("kind") == kind:
                answers[rank] = message
            elif serve is not None and message.get("kind") == "want piece":
                self.send(rank, serve(rank, message))
                deadline = time.monotonic() + timeout_s
        return answers

    @property
    def _grace_s(self) -> float:
        """How long after a rank's error the ranks that are to blame may still be unknown."""
        if self._disconnections is None:
            return DEATH_GRACE_S
        return heartbeat.longest_silence_s() + DEATH_GRACE_S

    def _raise_lost(self, missing: set[int], what: str) -> None:
        """Raise RankFault E-HOST-LOST for missing ranks whose connection has ended."""
        now = time.monotonic()
        if self._disconnections is not None and self._disconnections.any():
            for rank in self._greeted - set(self._lost):
                try:
                    self._socket.send_multipart([_identity(rank), b""], zmq.NOBLOCK)
                except zmq.Again:
                    continue
                except zmq.ZMQError:
                    self._lost[rank] = now
        if any(now - self._lost.get(rank, now) > heartbeat.LAST_WORDS_S for rank in missing):
            raise lost(set(self._lost) & missing, self.hosts, what)

    def close(self) -> None:
        if self._disconnections is not None:
            self._disconnections.close()
        self._socket.close()
        self._context.term()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _receive(self, timeout_ms: int) -> tuple[int, dict[str, Any]] | None:
        """The next message of a rank that has shown the secret; others are dropped."""
        if not self._socket.poll(timeout_ms):
            return None
        frames = self._socket.recv_multipart()
        try:
            rank = int(frames[0])
            message = wire.decode(frames[-1])
        except ValueError:
            return None
        if frames[0] != _identity(rank):
            return None
        if message.get("kind") == "hello":
            shown = str(message.get("secret", "")).encode()
            right = hmac.compare_digest(shown, self._secret.encode())
            if not (right and 0 <= rank < self.degree):
                return None
            self._greeted.add(rank)
        return (rank, message) if rank in self._greeted else None


class RankLink:
    """A rank's end."""

    def __init__(self, ticket: RankTicket) -> None:
        self._ticket = ticket
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.IDENTITY, _identity(ticket.rank))
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.MOST_MESSAGE_BYTES)
        self._watch: DriverWatch | None = None
        if ticket.server_key:
            beat(self._socket)
            self._socket.curve_serverkey = ticket.server_key.encode()
            self._socket.curve_publickey = ticket.public_key.encode()
            self._socket.curve_secretkey = ticket.secret_key.encode()
        self._socket.connect(ticket.endpoint)
        self.send({"kind": "hello", "secret": ticket.secret, "pid": os.getpid()})

    def send(self, message: dict[str, Any]) -> None:
        self._socket.send(wire.encode(message))

    def end_with_driver(self) -> None:
        """From now on the end of the driver, or of the way to it, ends this process."""
        if self._ticket.server_key and self._watch is None:
            self._watch = DriverWatch(self._socket)

    def receive(self) -> dict[str, Any]:
        # An empty message only asks whether this rank is there.
        while not (data := self._socket.recv()):
            pass
        return wire.decode(data)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._socket.close()
        self._context.term()


def _identity(rank: int) -> bytes:
    return str(rank).encode()


def name_ranks(gone: dict[int, str], what: str) -> str:
    """What was going on, and which ranks ended how."""
    return f"{what}: " + "; ".join(f"rank {rank} {how}" for rank, how in sorted(gone.items()))


def unique_lines(messages: Iterable[str]) -> str:
    """Join texts, each line once, in order."""
    return "\n".join(dict.fromkeys(line for text in messages for line in text.splitlines()))
