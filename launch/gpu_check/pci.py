"""What sysfs knows of a GPU's PCI Express link, and of ACS on the bridges above it."""

from __future__ import annotations

from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")
EXTENDED, CAPABILITY_ACS, ACS_CONTROL = 0x100, 0x000D, 6
REQUEST_REDIRECT, COMPLETION_REDIRECT = 1 << 2, 1 << 3


def link(bus: str, devices: Path = DEVICES) -> dict[str, str]:
    """Speed and width of the link of a device as "0000:01:00.0", now and at most."""
    folder, found = devices / bus, {}
    for name in ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width"):
        try:
            found[name] = (folder / name).read_text().strip()
        except OSError:
            found[name] = "unknown"
    return found


def access_control(bus: str, devices: Path = DEVICES) -> dict[str, str]:
    """Bridges above a device that have ACS, each with what it does to traffic between peers.

    "redirected": what one GPU sends another goes up to the root, where reads between them are slow
    or lost. "unknown": only root reads the extended configuration space.
    """
    try:
        path = (devices / bus).resolve(strict=True)
    except OSError:
        return {}
    found = {}
    for bridge in (parent for parent in path.parents if (parent / "config").is_file()):
        try:
            config = (bridge / "config").read_bytes()
        except OSError:
            config = b""
        if state := acs_state(config):
            found[bridge.name] = state
    return found


def acs_state(config: bytes) -> str:
    """Of a configuration space: "redirected", "direct", "unknown"; "" without the capability."""
    if len(config) <= EXTENDED:
        return "unknown"
    at, seen = EXTENDED, set()
    while EXTENDED <= at <= len(config) - 8 and at not in seen:
        seen.add(at)
        header = int.from_bytes(config[at : at + 4], "little")
        if header & 0xFFFF == CAPABILITY_ACS:
            control = int.from_bytes(config[at + ACS_CONTROL : at + ACS_CONTROL + 2], "little")
            redirects = control & (REQUEST_REDIRECT | COMPLETION_REDIRECT)
            return "redirected" if redirects else "direct"
        at = header >> 20
    return ""
