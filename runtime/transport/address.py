"""Where a driver listens for its ranks."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_SOCKET_PATH = 103
"""Bytes of a Unix socket's path: 107 on Linux, 103 on macOS."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a driver listens. `host` None means a Unix socket that only its owner can open."""

    host: str | None = None
