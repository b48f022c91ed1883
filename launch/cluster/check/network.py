"""Which network interface leads to a host, and how fast the kernel says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isobit.errors import EnvironmentFault

from ....runtime.transport.interfaces import ipv4_interfaces, own_address

INTERFACES = Path("/sys/class/net")


def route(target: str) -> dict[str, Any]:
    """The way from this host to the address `target`: no packet is sent to find it.

    Returns "address" (this host's own on that way), "interface" and "speed_mbit_s" (None where the
    kernel does not know them, as with Wi-Fi or virtual interfaces), or {"error": why}.
    """
    try:
        address = own_address(target)
    except EnvironmentFault as error:
        return {"error": error.message}
    names = (name for name, known in ipv4_interfaces() if known == address)
    interface = next(names, None)
    speed = None if interface is None else speed_of(interface)
    return {"address": address, "interface": interface, "speed_mbit_s": speed}


def speed_of(interface: str) -> int | None:
    """Mbit/s that the link of an interface was set to, None where the kernel cannot tell."""
    try:
        speed = int((INTERFACES / interface / "speed").read_text())
    except (OSError, ValueError):
        return None
    return speed if speed > 0 else None
