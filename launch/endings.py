"""Ending what does not end by itself: calls that hang, processes that stay, exit handlers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

_at_once: list[bool] = []


def ends_within(seconds: float, call: Callable[[], object]) -> bool:
    """Make a call, in a thread of its own, and say whether it has come back in time.

    Raises what the call raises.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001
            raised.append(error)  # for the thread that waits

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()


def kill_descendants() -> None:
    """Kill every process that this one has started, directly or through others."""
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def descendants() -> list[int]:
    """The processes below this one, children first; none where the system has no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, ())
    return found[1:]


def leave_at_once() -> None:
    """Have `leave` end this process without the exit handlers of libraries, which would hang."""
    _at_once.append(True)


def leave(status: int) -> None:
    """End this process with an exit status; raises SystemExit where nothing hangs."""
    if _at_once:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)
