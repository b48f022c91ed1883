"""The first message of a rank, by which the driver knows it."""

from __future__ import annotations

import hmac
import os
from typing import Any

from .ticket import RankTicket

KIND = "hello"


def greeting(ticket: RankTicket) -> dict[str, Any]:
    """What a rank says first."""
    return {"kind": KIND, "rank": ticket.rank, "secret": ticket.secret, "pid": os.getpid()}


def greeted(message: dict[str, Any], secret: str, degree: int) -> int | None:
    """The rank that greets with a message; None when the message does not show the secret."""
    shown, rank = message.get("secret"), message.get("rank")
    if message.get("kind") != KIND or not isinstance(shown, str):
        return None
    if not hmac.compare_digest(shown.encode(errors="replace"), secret.encode()):
        return None
    return rank if type(rank) is int and 0 <= rank < degree else None
