"""Which network interface carries an address, and what the kernel knows of it. Linux, IPv4."""

from __future__ import annotations

import fcntl
import socket
import struct
from pathlib import Path
from typing import Any

INTERFACES = Path("/sys/class/net")
_SIOCGIFADDR = 0x8915
_DISCARD_PORT = 9


def route(target: str) -> dict[str, Any]:
    """The way from this host to the address `target`: no packet is sent to find it.

    Returns "address" (this host's own on that way), "interface" and "speed_mbit_s" (None where the
    kernel does not know them, as with Wi-Fi or virtual interfaces), or {"error": why}.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((target, _DISCARD_PORT))
            address = probe.getsockname()[0]
    except OSError as error:
        return {"error": f"no route to {target}: {error.strerror or error}"}
    interface = interface_of(address)
    speed = None if interface is None else speed_of(interface)
    return {"address": address, "interface": interface, "speed_mbit_s": speed}


def interface_of(address: str) -> str | None:
    """The interface that an IPv4 address of this host belongs to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def speed_of(interface: str) -> int | None:
    """Mbit/s that the link of an interface was set to, None where the kernel cannot tell."""
    try:
        speed = int((INTERFACES / interface / "speed").read_text())
    except (OSError, ValueError):
        return None
    return speed if speed > 0 else None
