"""The parent's side of the process in which tokenizers and chat templates run."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import IO, Any, cast

from isobit.errors import (
    DamagedError,
    EnvironmentFault,
    InputError,
    IsobitError,
    NotSupportedError,
)

from .worker import read_message, write_message

KINDS: dict[str, type[IsobitError]] = {
    "misused": InputError,
    "damaged": DamagedError,
    "not-supported": NotSupportedError,
    "environment": EnvironmentFault,
}
# A process that has used no CPU time either waits for something that never comes.
WALL_PER_CPU_S = 20
START_S = 120


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one request may need: seconds of CPU time, and bytes beyond what the process has."""

    cpu_s: int
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.cpu_s} s of CPU time and {self.memory_bytes >> 20} MiB of memory"


class TextProcess:
    """One process for all tokenizers; it starts at the first call, and again after a crash.

    Thread-safe: requests take turns.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None
        self._owner = os.getpid()

    def start(self) -> None:
        """Start the process without waiting for it: its imports take as long as torch's."""
        with self._lock:
            self._start()

    def call(self, request: dict[str, Any], bounds: Bounds, code: str, what: str) -> Any:
        """The answer to a request.

        Raises what the process found wrong, and NotSupportedError `code` when it had to be ended:
        `what` is what it was doing, with the file's name.
        """
        limits = {"cpu_s": bounds.cpu_s, "memory_bytes": bounds.memory_bytes}
        with self._lock:
            process = self._start()
            late = threading.Timer(START_S + WALL_PER_CPU_S * bounds.cpu_s, process.kill)
            late.daemon = True
            late.start()
            try:
                write_message(cast("IO[bytes]", process.stdin), {**request, **limits})
                answer = read_message(cast("IO[bytes]", process.stdout))
            except (EOFError, BrokenPipeError):
                raise self._ended(process, bounds, code, what) from None
            except BaseException:
                # An interrupted exchange leaves half a message: the next call needs a new process.
                self._stop()
                raise
            finally:
                late.cancel()
        if "error" in answer:
            kind, code, message = answer["error"]
            raise KINDS[kind](code, message)
        return answer["value"]

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():
            # A fork has the pipes of its parent, whose process this is.
            self._process, self._owner = None, os.getpid()
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by _stop
            self._process = subprocess.Popen(
                # -P: a model folder that is the current one must not bring modules along.
                [sys.executable, "-P", "-m", f"{__package__}.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env={
                    **os.environ,
                    "HF_HUB_OFFLINE": "1",
                    "TOKENIZERS_PARALLELISM": "false",
                    "RUST_BACKTRACE": "0",
                },
            )
        return self._process

    def _stop(self) -> None:
        if self._process is None or self._owner != os.getpid():
            return
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                cast("IO[bytes]", pipe).close()
        self._process.wait()
        cast("IO[bytes]", self._complaints).close()
        self._process = self._complaints = None

    def _ended(
        self, process: subprocess.Popen[bytes], bounds: Bounds, code: str, what: str
    ) -> IsobitError:
        status = process.wait()
        complaints = cast("IO[bytes]", self._complaints)
        complaints.seek(0)
        lines = complaints.read()[-4096:].decode(errors="replace").strip().splitlines()
        self._stop()
        if status >= 0:
            reason = lines[-1] if lines else f"status {status}"
            return EnvironmentFault(code, f"the process that runs tokenizers ended ({reason})")
        if -status in (signal.SIGXCPU, signal.SIGKILL):
            how = "did not end"
        elif asked := [line for line in lines if "memory allocation" in line]:
            how = f"asked for more ({asked[-1]})"
        else:
            how = f"was ended by {signal.Signals(-status).name}"
        return NotSupportedError(
            code, f"{what} {how} within {bounds}. --prompt-ids 1,2,3 works without it"
        )


PROCESS = TextProcess()
atexit.register(PROCESS.close)
