"""The folder of this host where hashes and fetched models are kept, and a lock per host."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """`$ISOBIT_CACHE`, else `isobit` in `$XDG_CACHE_HOME` or `~/.cache`. It need not exist."""
    if chosen := os.environ.get("ISOBIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "isobit"


@contextmanager
def host_lock(path: Path) -> Iterator[None]:
    """Let one process of this host at a time into the block; the others wait.

    The system opens the lock again when its holder ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
