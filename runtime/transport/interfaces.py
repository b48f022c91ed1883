"""The way from this host to the driver: which interface it takes, and whether it is open."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from dataclasses import dataclass

from isobit.errors import EnvironmentFault

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"
CONNECT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Route:
    """The interface over which a rank speaks with others, its address, and who chose it."""

    interface: str
    address: str
    chosen_by: str


def use_route(host: str) -> Route:
    """Make gloo and NCCL take the interface that leads to `host`, unless the user named others.

    Raises EnvironmentFault E-NET-INTERFACE when the user named one that is not there.
    """
    there = ipv4_interfaces()
    own = own_address(host)
    interface = next((name for name, address in there if address == own), None)
    if interface is None:
        raise EnvironmentFault(
            "E-NET-INTERFACE", f"{own} leads to {host} and is no address of {_listed(there)}"
        )
    os.environ.setdefault(NCCL, interface)
    named = os.environ.setdefault(GLOO, interface)
    if named == interface:
        return Route(interface=interface, address=own, chosen_by=f"the route to {host}")
    first = named.split(",")[0]
    address = next((address for name, address in there if name == first), None)
    if address is None:
        raise EnvironmentFault(
            "E-NET-INTERFACE",
            f"{GLOO}={named}: {socket.gethostname()} has no such interface with an IPv4 address, "
            f"only {_listed(there)}. {interface} leads to the driver: leave {GLOO} unset",
        )
    return Route(interface=first, address=address, chosen_by=GLOO)


def check_reachable(host: str, port: int) -> None:
    """Raise EnvironmentFault E-NET-DRIVER when no connection to the driver can be opened."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise EnvironmentFault(
            "E-NET-DRIVER",
            f"{socket.gethostname()} cannot reach the driver at {host}, port {port}: "
            f"{error.strerror or error}. The driver listens on ports that the system chooses: open "
            "TCP between the hosts",
        ) from error


def split(endpoint: str) -> tuple[str, int]:
    """tcp://10.0.0.1:4000 -> ("10.0.0.1", 4000)."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def own_address(host: str) -> str:
    """The address from which the system would send to `host`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
        except OSError as error:
            raise EnvironmentFault(
                "E-NET-DRIVER", f"{socket.gethostname()} knows no way to {host}: {error.strerror}"
            ) from error
        return probe.getsockname()[0]


class _Entry(ctypes.Structure):
    """struct ifaddrs of getifaddrs(3), as far as it is read."""


_Entry._fields_ = [
    ("next", ctypes.POINTER(_Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(ctypes.c_ubyte)),
]


def ipv4_interfaces() -> list[tuple[str, str]]:
    """Names and IPv4 addresses of this host's interfaces; a name may have several."""
    libc = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Entry)()
    if libc.getifaddrs(ctypes.byref(first)):
        raise OSError(ctypes.get_errno(), "getifaddrs")
    found, entry = [], first
    while entry:
        address = entry.contents.address
        if address and _family(address) == socket.AF_INET:
            found.append((entry.contents.name.decode(), socket.inet_ntoa(bytes(address[4:8]))))
        entry = entry.contents.next
    libc.freeifaddrs(first)
    return found


def _family(address: ctypes._Pointer[ctypes.c_ubyte]) -> int:
    # Other systems than Linux keep the length of a sockaddr in its first byte.
    return int.from_bytes(bytes(address[0:2]), sys.byteorder) if _LINUX else address[1]


_LINUX = sys.platform == "linux"


def _listed(interfaces: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({address})" for name, address in interfaces)
