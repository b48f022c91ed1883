"""The driver's side of the process that ranks of this machine are forked from.

It imports the standard library alone, so that the process can start before anything else does.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..transport.ticket import RankTicket

SERVER = "isobit.runtime.worker.server"
END_S = 5
"""How long the ranks may take to end before they are killed."""


class RankServer:
    """The driver's side of runtime/worker/server.py, which forks ranks of this machine.

    It may be started before it is needed: what it imports takes as long as what the driver imports.
    The environment of the ranks is that of the driver at the start.
    """

    def __init__(self) -> None:
        self._read, reports = os.pipe()
        os.set_blocking(self._read, False)
        try:
            self._process = subprocess.Popen(
                # -P: a model folder that is the current one must not bring modules along.
                [sys.executable, "-P", "-m", SERVER, str(os.getpid()), str(reports)],
                stdin=subprocess.PIPE,
                pass_fds=(reports,),
            )
        finally:
            os.close(reports)
        self._unread = b""
        self._pids: list[int] = []
        self._statuses: dict[int, int] = {}

    def fork(self, ticket: RankTicket) -> None:
        """Have a rank forked; where the server has ended, `statuses` will say so."""
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps(dataclasses.asdict(ticket)).encode() + b"\n")
            pipe.flush()

    def pids(self) -> list[int]:
        """The processes of the ranks that have started, in the order of their tickets."""
        self._take_reports()
        return list(self._pids)

    def statuses(self, count: int) -> dict[int, int]:
        """Which of the `count` ranks asked for have ended, with their exit statuses."""
        # Before the pipe is read to its end, which holds what happened before.
        ended = self._process.poll()
        self._take_reports()
        found = {
            rank: self._statuses[pid]
            for rank, pid in enumerate(self._pids)
            if pid in self._statuses
        }
        return found if ended is None else dict.fromkeys(range(count), ended) | found

    def stop(self) -> None:
        """End the ranks, and the server. Safe to call twice."""
        pipe = self._process.stdin
        assert pipe is not None
        self._process.terminate()
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
        try:
            self._process.wait(timeout=3 * END_S)
        except subprocess.TimeoutExpired:
            # Its ranks die with it.
            self._process.kill()
            self._process.wait()
        if self._read >= 0:
            os.close(self._read)
            self._read = -1

    def _take_reports(self) -> None:
        more = b" "
        while more and self._read >= 0:
            try:
                more = os.read(self._read, 4096)
            except BlockingIOError:
                break
            self._unread += more
        *lines, self._unread = self._unread.split(b"\n")
        for pid, *status in (map(int, line.split()) for line in lines):
            if status:
                self._statuses[pid] = status[0]
            else:
                self._pids.append(pid)


_early: list[RankServer] = []


def start_early() -> None:
    """Start the server of the next launcher now, while the driver imports the same things."""
    if not _early:
        _early.append(RankServer())
        atexit.register(_stop_unused)


def started_server() -> RankServer:
    """The server that `start_early` has started, once, or else a new one."""
    return _early.pop() if _early else RankServer()


def _stop_unused() -> None:
    for server in _early:
        server.stop()
