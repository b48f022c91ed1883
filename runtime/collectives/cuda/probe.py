"""Whether ranks reach each other's device memory, tried in processes of their own.

Where CUDA is wrong about it, a kernel that touches memory of a peer can fault, and a fault ends the
context of its process: nothing of a rank would be left to fall back. So a child of every rank
writes to each peer and reads from it first, and its end is an answer like any other.

`python -m isobit.runtime.collectives.cuda.probe INDEX RANK DEGREE` is such a child. It answers
lines on its standard input: "share", "open HANDLE ...", "check".
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TextIO

import torch

from ....kernels.errors import EnvironmentFault
from ....kernels.gpu.peers import touch_peers
from .driver import CudaDriver, Driver

ANSWER_S = 60.0
"""How long a child may take for an answer; the first includes importing torch and a context."""
END_S = 5.0
WORD_BYTES = 8


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
    command = [sys.executable, "-m", __name__, str(index), str(rank), str(degree)]
    actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 0), (os.POSIX_SPAWN_DUP2, theirs_out, 1)]
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    os.close(theirs_in)
    os.close(theirs_out)
    return Child(pid, answers, questions)


def probe_peers(
    driver: Driver, rank: int, degree: int, tell: Callable[[str], Sequence[str]]
) -> str:
    """Why ranks do not use each other's device memory, the same text everywhere; empty where every
    child reached every other."""
    child, wrong, answer = None, "", ""
    try:
        child = driver.start_probe(rank, degree)
    except (EnvironmentFault, OSError) as error:
        wrong = f"{getattr(error, 'message', error)}"
    try:
        for question in ("share", "open", "check"):
            if child is not None and not wrong:
                try:
                    answer = child.ask(f"{question} {answer}")
                except EnvironmentFault as fault:
                    wrong = fault.message
            told = [text.partition("\n") for text in tell(f"{answer}\n{wrong}")]
            if faults := [f"rank {peer}: {text}" for peer, (_, _, text) in enumerate(told) if text]:
                return "; ".join(faults)
            answer = " ".join(handle for handle, _, _ in told)
    finally:
        if child is not None:
            child.end()
    return ""


def serve(
    driver: Driver, device: torch.device, rank: int, degree: int, asked: TextIO, said: TextIO
) -> None:
    """Answer until nothing more is asked."""
    own = 0
    for line in asked:
        question, *handles = line.split()
        try:
            if question == "share":
                own = driver.allocate(degree * WORD_BYTES)
                _touched([own] * degree, device, rank)
                answer = driver.share(own).hex()
            elif question == "open":
                _check(_touched(_opened(driver, handles, own, rank), device, rank), "read from")
                answer = ""
            else:
                _check(_touched([own] * degree, device, rank), "received from")
                answer = ""
            said.write(f"ok {answer}\n")
        except (EnvironmentFault, RuntimeError) as error:
            text = str(getattr(error, "message", error)).splitlines()[0]
            said.write(f"wrong {text}\n")
        said.flush()


def _opened(driver: Driver, handles: Sequence[str], own: int, rank: int) -> list[int]:
    addresses = []
    for peer, handle in enumerate(handles):
        try:
            addresses.append(own if peer == rank else driver.open(bytes.fromhex(handle)))
        except (EnvironmentFault, RuntimeError) as error:
            text = getattr(error, "message", error)
            raise EnvironmentFault("E-COLL-CUDA", f"memory of rank {peer}: {text}") from error
    return addresses


def _touched(addresses: Sequence[int], device: torch.device, rank: int) -> list[int]:
    """Write rank + 1 to its place at each address; what is in place i at address i."""
    regions = torch.tensor(list(addresses), dtype=torch.int64, device=device)
    seen = torch.zeros(len(addresses), dtype=torch.int64, device=device)
    launch = touch_peers(regions, seen, rank)
    launch.load()
    launch.run()
    return seen.tolist()


def _check(seen: Sequence[int], how: str) -> None:
    wrong = [f"{word} {how} rank {peer}" for peer, word in enumerate(seen) if word != peer + 1]
    if wrong:
        raise EnvironmentFault("E-COLL-CUDA", f"not what was written: {', '.join(wrong)}")


def main() -> None:
    index, rank, degree = map(int, sys.argv[1:])
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    serve(CudaDriver(device), device, rank, degree, sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
