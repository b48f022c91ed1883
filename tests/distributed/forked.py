"""Ranks as forked processes, so that torch is imported once for many groups of them."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

MOST_SECONDS = 150


def run_group(degree: int, run: Callable[[int], None], most_seconds: int = MOST_SECONDS) -> None:
    """Run `run(rank)` in a process of its own for each rank; return when all have ended.

    A rank that has stopped itself goes on once rank 0 has ended.
    """
    children = [_fork(rank, run, most_seconds) for rank in range(degree)]
    for rank, child in enumerate(children):
        if rank:
            os.kill(child, signal.SIGCONT)
        os.waitpid(child, 0)


def _fork(rank: int, run: Callable[[int], None], most_seconds: int) -> int:
    child = os.fork()
    if child:
        return child
    # A hanging rank ends by this signal, whatever it waits for.
    signal.alarm(most_seconds)
    try:
        run(rank)
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)
