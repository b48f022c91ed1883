"""What a process needs to become a rank. Imports nothing heavy: a rank connects before torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RankTicket:
    """All that a process needs to become a rank: where the driver listens, and a secret to show.

    `device` is "cpu", "cuda" until a launcher says which, or "cuda:I", I being the number under
    which the process sees the card. The CURVE keys are empty on a Unix socket, whose folder only
    its owner can open.
    """

    endpoint: str
    rank: int
    degree: int
    secret: str
    device: str = "cpu"
    server_key: str = ""
    public_key: str = ""
    secret_key: str = ""
