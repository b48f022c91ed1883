"""Whether anybody listens at an address: asked directly, because Ray is slow to say.

Ray gives a node up 64 seconds after its cable was cut, unless the whole cluster was started with
other settings. Opening a TCP connection costs next to nothing.
"""

from __future__ import annotations

import socket

Door = tuple[str, int]
"""Address and port of a raylet, or of the head."""

CONNECT_S = 2.0
GLANCE_S = 0.05


def silence(door: Door) -> str | None:
    """Why no connection can be opened, or None when one can."""
    try:
        socket.create_connection(door, timeout=CONNECT_S).close()
    except OSError as error:
        return str(error.strerror or error).lower()
    return None


def refuses(door: Door) -> bool:
    """Whether the host answers at once that nobody listens there; False when in doubt."""
    try:
        socket.create_connection(door, timeout=GLANCE_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
