"""The process that tries memory of peers for a rank; `probe` is what runs in it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

from isobit.errors import EnvironmentFault

PROBE = f"{__package__}.probe"
ANSWER_S = 60.0
"""How long a child may take for an answer; the first includes importing torch and a context."""
END_S = 5.0


class Child:
    """A process that answers lines, by its id and two pipes."""

    def __init__(self, pid: int, answers: int, questions: int) -> None:
        self._pid, self._answers, self._questions = pid, answers, questions
        self._pending = b""

    def ask(self, question: str, seconds: float = ANSWER_S) -> str:
        """The answer. Raises EnvironmentFault E-COLL-CUDA where the child found a fault, ended or
        said nothing."""
        with suppress(BrokenPipeError):
            os.write(self._questions, f"{question}\n".encode())
        until = time.monotonic() + seconds
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise EnvironmentFault("E-COLL-CUDA", f"no answer to a probe within {seconds:g} s")
            more = os.read(self._answers, 1 << 16)
            if not more:
                raise EnvironmentFault("E-COLL-CUDA", f"the probe {self._ended()}")
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        good, _, text = line.decode().partition(" ")
        if good != "ok":
            raise EnvironmentFault("E-COLL-CUDA", text)
        return text

    def end(self) -> None:
        """Let it go, or end it."""
        if self._pid:
            os.close(self._questions)
            os.close(self._answers)
            self._wait()

    def _ended(self) -> str:
        os.close(self._questions)
        os.close(self._answers)
        status = os.waitstatus_to_exitcode(self._wait())
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    def _wait(self) -> int:
        pid, self._pid = self._pid, 0
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]


def start_child(index: int, rank: int, degree: int) -> Child:
    """A child on the device of that index."""
    theirs_in, questions = os.pipe()
    answers, theirs_out = os.pipe()
    command = [sys.executable, "-m", PROBE, str(index), str(rank), str(degree)]
    actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 0), (os.POSIX_SPAWN_DUP2, theirs_out, 1)]
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    os.close(theirs_in)
    os.close(theirs_out)
    return Child(pid, answers, questions)
