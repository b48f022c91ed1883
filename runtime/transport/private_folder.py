"""A folder for sockets that only its owner can open, gone with the process that made it.

A process that is killed removes nothing: who makes a folder later does it for those of dead owners.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from .address import LONGEST_SOCKET_PATH

PREFIX = "isobit-"
LOCK = "lock"
RANDOM_CHARACTERS = 8


class PrivateFolder:
    """A new folder for sockets whose paths add `below` characters. Whoever makes one closes it.

    It lies in the system's temporary folder, or in /tmp where that is too long for a Unix socket.
    Raises OSError.
    """

    def __init__(self, kind: str, below: int) -> None:
        prefix, top = f"{PREFIX}{kind}", tempfile.gettempdir()
        if len(f"{top}/{prefix}".encode()) + RANDOM_CHARACTERS + below > LONGEST_SOCKET_PATH:
            top = "/tmp"  # noqa: S108
        remove_left_over(Path(top))
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=top))
        # Held before it has its name: who finds a lock that nobody holds may remove the folder.
        begun = self.path / f".{LOCK}"
        self._lock = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        begun.rename(self.path / LOCK)

    def close(self) -> None:
        """Remove the folder with all that is in it. Safe to call twice."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def remove_left_over(top: Path) -> None:
    """Remove the folders of this user in `top` whose owners have been killed."""
    pattern = re.compile(rf"{PREFIX}([a-z]+-)?[a-z0-9_]{{{RANDOM_CHARACTERS}}}")
    for folder in top.glob(f"{PREFIX}*"):
        if pattern.fullmatch(folder.name) and _is_left_over(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left_over(folder: Path) -> bool:
    try:
        status = folder.lstat()
        private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
        if not private or status.st_uid != os.geteuid():
            return False
        lock = os.open(folder / LOCK, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
