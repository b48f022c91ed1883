"""A rank's end of the link, whatever carries it."""

from __future__ import annotations

from typing import Any, Protocol

from .ticket import RankTicket
from .unix import SCHEME, UnixRank


class RankLink(Protocol):
    """A connection to the driver, which has been greeted."""

    def hold(self, message: dict[str, Any]) -> None:
        """Keep a message until the next is sent, or all are: the driver wakes up once for them."""
        ...

    def flush(self) -> None:
        """Send what is held; what the driver is no longer there for is dropped."""
        ...

    def send(self, message: dict[str, Any]) -> None:
        """Send what is held, then a message."""
        ...

    def receive(self) -> dict[str, Any]:
        """Wait for the driver's next message; raises DriverGone where it can be noticed here."""
        ...

    def end_with_driver(self) -> None:
        """From now on the end of the driver, or of the way to it, ends this process."""
        ...

    def close(self) -> None: ...


def connect(ticket: RankTicket) -> RankLink:
    """Greet the driver; raises EnvironmentFault E-NET-DRIVER when there is none on this host."""
    if ticket.endpoint.startswith(SCHEME):
        return UnixRank(ticket)
    from .tcp import TcpRank

    return TcpRank(ticket)
