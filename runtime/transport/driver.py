"""The driver's end of the link: sends to ranks by number, collects one answer from each."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from isobit.errors import EnvironmentFault, RankFault

from . import wire
from .address import Address
from .messages import name_ranks
from .private_folder import PrivateFolder
from .ticket import RankTicket
from .unix import UnixDriver

Serve = Callable[[int, dict[str, Any]], dict[str, Any]]
"""`serve(rank, message)`: what is sent back to a rank that wants a piece of a file."""
POLL_MS = 100
DEATH_GRACE_S = 0.5
LATER_S = 2.0
"""How long answers are awaited from ranks after another has failed behind its own answer."""


class Transport(Protocol):
    """What carries messages to ranks and back, from those that have shown the secret."""

    endpoint: str

    @property
    def longest_silence_s(self) -> float:
        """After how many seconds at most the end of a connection is noticed."""
        ...

    def keys(self) -> dict[str, str]:
        """The keys of a new ticket, by the names that RankTicket gives them."""
        ...

    def send(self, rank: int, data: bytes) -> None:
        """Send without waiting; raises RankFault E-RANK-DIED for a rank that never came."""
        ...

    def receive(self, timeout_ms: int) -> tuple[int, dict[str, Any]] | None:
        """The next message and its rank; None after that time, or when a stranger spoke."""
        ...

    def lost(self, missing: set[int], hosts: Sequence[str], what: str) -> RankFault | None:
        """The error for those of the missing ranks whose connection has ended, if there are any."""
        ...

    def close(self) -> None: ...


class DriverLink:
    """The driver's end: sends to ranks by number, collects one answer from each."""

    def __init__(self, degree: int, address: Address) -> None:
        """Listen; raises EnvironmentFault E-DRIVER-LISTEN."""
        self.degree = degree
        self._private = PrivateFolder("", len("/driver"))
        self.folder = self._private.path
        self._secret = secrets.token_hex(16)
        self._early: deque[tuple[int, dict[str, Any]]] = deque()
        self.hosts = ["this"] * degree
        """The name of each rank's host, for messages."""
        try:
            self._transport = _listen(address, self.folder, degree, self._secret)
        except OSError as error:
            self._private.close()
            raise EnvironmentFault(
                "E-DRIVER-LISTEN",
                f"the driver cannot listen for its ranks at {address.host or 'a socket'}: {error}",
            ) from error

    def ticket(self, rank: int, device: str = "cpu") -> RankTicket:
        """What rank number `rank` needs to connect."""
        return RankTicket(
            endpoint=self._transport.endpoint,
            rank=rank,
            degree=self.degree,
            secret=self._secret,
            device=device,
            **self._transport.keys(),
        )

    def send(self, rank: int, message: dict[str, Any]) -> None:
        """Send to one rank; raises RankFault E-RANK-DIED when it never came."""
        self._transport.send(rank, wire.encode(message))

    def send_all(self, message: dict[str, Any]) -> None:
        """Send to every rank; raises RankFault E-RANK-DIED when one never came."""
        data = wire.encode(message)
        for rank in range(self.degree):
            self._transport.send(rank, data)

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
        answer is kept for the next call, but an error, or its death, is the answer of all when
        nobody else speaks any more: they wait for that rank. Ranks that want pieces of files get
        them from `serve`; each piece grants all another `timeout_s`. Raises RankFault E-RANK-DIED,
        E-RANK-STOPPED, E-HOST-LOST or E-RANK-TIMEOUT naming the ranks.
        """
        answers: dict[int, dict[str, Any]] = {}
        early, self._early = self._early, deque()
        deadline = time.monotonic() + timeout_s
        failed, grace_s = False, self._transport.longest_silence_s + DEATH_GRACE_S
        gone: dict[int, str] = {}
        later_errors: dict[int, dict[str, Any]] = {}
        died_later: float | None = None
        while len(answers) < self.degree:
            received = early.popleft() if early else self._transport.receive(POLL_MS)
            if received is None:
                missing = set(range(self.degree)) - set(answers)
                # A rank may have ended just after its last words: blamed after another look.
                if gone := {rank: gone[rank] for rank in gone if rank in missing}:
                    raise RankFault("E-RANK-DIED", name_ranks(gone, what))
                ended = dead()
                gone = {rank: how for rank, how in ended.items() if rank in missing}
                if gone:
                    continue
                spoke = {r for r, answer in answers.items() if answer.get("kind") == "error"}
                spoke |= set(later_errors)
                if silently := {r: how for r, how in ended.items() if r not in spoke}:
                    died_later = died_later or time.monotonic()
                    if time.monotonic() - died_later > LATER_S:
                        raise RankFault("E-RANK-DIED", name_ranks(silently, what))
                if (fault := self._transport.lost(missing, self.hosts, what)) is not None:
                    raise fault
                if time.monotonic() > deadline:
                    if failed:
                        _blame_the_silent(answers | later_errors, dead, what)
                        return answers | later_errors
                    raise RankFault(
                        "E-RANK-TIMEOUT",
                        f"{what}: no answer within {timeout_s:.0f} s from "
                        + ", ".join(f"rank {rank}" for rank in sorted(missing)),
                    )
                continue
            rank, message = received
            if rank in answers:
                self._early.append(received)
                if message.get("kind") == "error":
                    later_errors[rank] = message
                    if not failed:
                        failed, deadline = True, time.monotonic() + LATER_S
                continue
            if message.get("kind") == "error":
                answers[rank] = message
                if stop_at_error and not failed:
                    failed, deadline = True, time.monotonic() + grace_s
            elif message.get("kind") == kind:
                answers[rank] = message
            elif serve is not None and message.get("kind") == "want piece":
                self.send(rank, serve(rank, message))
                deadline = time.monotonic() + timeout_s
        if failed:
            _blame_the_silent(answers | later_errors, dead, what)
        return answers

    def close(self) -> None:
        self._transport.close()
        self._private.close()


def _blame_the_silent(
    answers: dict[int, dict[str, Any]], dead: Callable[[], dict[int, str]], what: str
) -> None:
    """Raise RankFault E-RANK-DIED for ranks that ended without a word, where others only missed
    them in a collective. A rank may have answered its step and been killed behind it."""
    errors = {rank for rank, answer in answers.items() if answer.get("kind") == "error"}
    if not all(str(answers[rank].get("code")).startswith("E-COLL-") for rank in errors):
        return
    until = time.monotonic() + DEATH_GRACE_S
    while True:
        if silently := {rank: how for rank, how in dead().items() if rank not in errors}:
            raise RankFault("E-RANK-DIED", name_ranks(silently, what))
        if time.monotonic() > until:
            return
        time.sleep(POLL_MS / 1000)


def _listen(address: Address, folder: Path, degree: int, secret: str) -> Transport:
    if address.host is None:
        return UnixDriver(folder, degree, secret)
    from .tcp import TcpDriver

    return TcpDriver(address.host, degree, secret)
