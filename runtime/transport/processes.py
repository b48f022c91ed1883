"""What this host knows of the process at the other end of a Unix socket."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

STOPPED = "T"
"""By a signal; under a debugger it is "t"."""


def peer_process(connection: socket.socket) -> int | None:
    """The process that connected, as the system saw it; None where it does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    fields = struct.Struct("iII")
    answer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, fields.size)
    return fields.unpack(answer)[0] or None


def process_is_stopped(pid: int | None) -> bool:
    """Whether a process of this host was stopped by a signal, as by SIGSTOP or Ctrl-Z."""
    try:
        # The name before the state is in brackets, and may hold any of them.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == STOPPED
    except (OSError, IndexError, ValueError):
        return False
