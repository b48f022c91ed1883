"""The process that ranks of this machine are forked from: what they import is imported once.

`python -m isobit.runtime.worker.server DRIVER_PID REPORTS` reads RankTickets from standard input, a
line of JSON each, and forks a rank for each. To the file descriptor REPORTS it writes `PID` when a
rank has started, in their order, and `PID STATUS` when one has ended (negative for a signal, as in
subprocess). At SIGTERM, at the end of its input and without its driver it ends the ranks that are
left, and itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import FrameType

from ..transport.ticket import RankTicket

PR_SET_PDEATHSIG = 1
LOOKS_S = 1.0
"""How often it looks for its driver, whose input other processes might hold open."""
END_S = 5
"""How long ranks may take to end after SIGTERM, before they are killed."""


def die_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class RankServer:
    """The loop of the process: tickets in, forked ranks, and reports of their ends."""

    def __init__(self, driver: int, reports: int, run: Callable[[RankTicket], None]) -> None:
        self._driver, self._reports, self._run = driver, reports, run
        self._ranks: set[int] = set()
        self._woken, self._wakes = os.pipe()
        for end in (self._woken, self._wakes):
            os.set_blocking(end, False)

    def serve(self) -> None:
        """Fork ranks until the end of standard input or SIGTERM, then end them."""
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            self._serve()
        finally:
            self._end()

    def _serve(self) -> None:
        unread = b""
        # Linux would tell of the end of the thread that started this process, and any may have.
        while os.getppid() == self._driver:
            ready, _, _ = select.select([0, self._woken], [], [], LOOKS_S)
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if 0 in ready:
                more = os.read(0, 65536)
                if not more:
                    return
                *lines, unread = (unread + more).split(b"\n")
                for line in lines:
                    self._fork(RankTicket(**json.loads(line)))

    def _fork(self, ticket: RankTicket) -> None:
        server = os.getpid()
        pid = os.fork()
        if not pid:
            self._become_rank(ticket, server)
        self._ranks.add(pid)
        self._report(f"{pid}")

    def _become_rank(self, ticket: RankTicket, server: int) -> None:
        status = 1
        try:
            die_with(server)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            for pipe in (self._woken, self._wakes, self._reports):
                os.close(pipe)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)
            self._run(ticket)
            status = 0
        except SystemExit as ended:
            # As the interpreter does: a number is the status, anything else a message.
            if ended.code is None or isinstance(ended.code, int):
                status = ended.code or 0
            else:
                print(ended.code, file=sys.stderr)
        except BaseException:  # noqa: BLE001 -- nothing above this frame would report it
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(status)

    def _reap(self) -> None:
        for pid in list(self._ranks):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._ranks.remove(pid)
                self._report(f"{pid} {os.waitstatus_to_exitcode(status)}")

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._ranks:
                os.kill(pid, number)
            limit = time.monotonic() + END_S
            while self._ranks and time.monotonic() < limit:
                select.select([self._woken], [], [], 0.05)
                self._reap()

    def _report(self, line: str) -> None:
        # Nobody reads them where the driver is gone; its end is at hand then.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._reports, line.encode() + b"\n")


def _ended(_signal: int, _frame: FrameType | None) -> None:
    # A second one must not interrupt the end of the ranks.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def main() -> None:
    # The terminal sends Ctrl-C to the whole process group; only the driver acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ended)
    # What takes seconds to import, and that alone: ranks take nothing else from here.
    from .process import name_process, run_rank
    from . import worker  # noqa: F401  # isort: skip

    def run(ticket: RankTicket) -> None:
        name_process(ticket)
        run_rank(ticket)

    gc.freeze()
    RankServer(int(sys.argv[1]), int(sys.argv[2]), run).serve()


if __name__ == "__main__":
    main()
