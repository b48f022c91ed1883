"""Where a driver listens for its ranks."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

LONGEST_SOCKET_PATH = 103
"""Bytes of a Unix socket's path: 107 on Linux, 103 on macOS."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a driver listens. `host` None means a Unix socket that only its owner can open."""

    host: str | None = None


def private_folder(prefix: str, below: int) -> Path:
    """A new folder that only its owner can open, for sockets whose paths add `below` characters.

    It lies in the system's temporary folder, or in /tmp where that is too long for a Unix socket.
    """
    top = tempfile.gettempdir()
    random_characters = 8
    if len(f"{top}/{prefix}".encode()) + random_characters + below > LONGEST_SOCKET_PATH:
        top = "/tmp"  # noqa: S108
    return Path(tempfile.mkdtemp(prefix=prefix, dir=top))
