"""Holding Ctrl-C, SIGTERM and SIGHUP back while processes are started or ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt after the block, not in it, when a signal arrives meanwhile.

    A library that is interrupted between starting a process and writing it down loses it. Handlers
    that the block itself installs are replaced by the earlier ones.
    """
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        raise KeyboardInterrupt
