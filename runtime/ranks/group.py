"""The processes of one model over its ranks: started together, asked together, ended together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isobit.errors import IsobitError, RankFault, error_of_kind

from ..transport.driver import DriverLink, Serve
from ..transport.messages import unique_lines
from ..transport.rendezvous import Rendezvous
from .launcher import Launcher

HELLO_S = 300.0
"""A rank greets before it imports anything heavy."""


class RankGroup:
    """The driver's hold on its ranks. Whoever makes one closes it."""

    def __init__(
        self,
        degree: int,
        launcher: Launcher,
        timeout_s: float,
        devices: Sequence[str] | None = None,
    ) -> None:
        """Start a process for every rank and hear from each within `timeout_s`, and HELLO_S.

        `devices` as in RankTicket, one for each rank; left out, all are CPUs.

        Raises RankFault when a rank dies or is silent, and what the launcher raises.
        """
        self.degree, self._launcher = degree, launcher
        address = launcher.address()
        self.several_hosts = address.host is not None
        self._link = DriverLink(degree, address)
        try:
            self._rendezvous = Rendezvous(self._link.folder, address.host)
            devices = devices or ["cpu"] * degree
            tickets = [self._link.ticket(r, name) for r, name in enumerate(devices)]
            launcher.launch(tickets)
            self._link.hosts = launcher.hosts()
            self.collect("hello", "starting the ranks", min(timeout_s, HELLO_S))
        except BaseException:
            self.close()
            raise

    @property
    def meeting_place(self) -> dict[str, Any]:
        """What ranks have to be told to find each other and to share a host."""
        return {
            "hosts": self._launcher.hosts(),
            "rendezvous": self._rendezvous.address,
        }

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to every rank; raises RankFault E-RANK-DIED when one is gone."""
        self._link.send_all(message)

    def collect(
        self,
        kind: str,
        what: str,
        timeout_s: float,
        stop_at_error: bool = True,
        serve: Serve | None = None,
    ) -> dict[int, dict[str, Any]]:
        """One `kind` of answer from every rank, as DriverLink.collect; raises what ranks raised."""
        answers = self._link.collect(
            kind, what, timeout_s, self._launcher.dead, stop_at_error, serve
        )
        errors = {rank: a for rank, a in answers.items() if a["kind"] == "error"}
        if errors:
            raise _combined(errors, what)
        return answers

    def close(self) -> None:
        """Tell the ranks to stop, then end their processes."""
        for rank in range(self.degree):
            try:
                self._link.send(rank, {"kind": "stop"})
            except RankFault:
                continue
        self._launcher.stop()
        self._link.close()


def _combined(errors: dict[int, dict[str, Any]], what: str) -> IsobitError:
    """One error for what several ranks reported, each line once."""
    code = next(iter(errors.values()))["code"]
    text = unique_lines(error["message"] for error in errors.values() if error["code"] == code)
    kinds = [error["error_kind"] for error in errors.values() if error["code"] == code]
    if RankFault.kind in {error["error_kind"] for error in errors.values()}:
        ranks = ", ".join(f"rank {rank}" for rank in sorted(errors))
        return RankFault(code, f"{what}: {ranks}: {text}")
    return error_of_kind(kinds[0], code, text)
