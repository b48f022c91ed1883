"""How much memory this host has left."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int | None:
    """Bytes of memory that programs may still take, None where that cannot be known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        entry = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(entry.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return None
