"""Running one command under bounds of time and memory: forked from here, or as a real command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MOST_BYTES = 2 << 30
MOST_SECONDS = 60.0
POLL_S = 0.02
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Ended:
    """How a command ended; `bound` names the bound that it passed, "" for none."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int
    bound: str


def forked(arguments: list[str], scratch: Path) -> Ended:
    """Run `isobit` in a forked child of this process; its ranks are forked from it in turn."""

    def run() -> int:
        from isobit.launch.cli.main import main

        _fork_ranks()
        sys.argv = ["isobit", *arguments]
        try:
            main()
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 1
        return 0

    return _bounded(run, scratch)


def as_command(arguments: list[str], scratch: Path) -> Ended:
    """Run `isobit` as people do."""

    def run() -> int:
        program = [sys.executable, "-m", "isobit.launch.cli", *arguments]
        os.execv(program[0], program)  # noqa: S606

    return _bounded(run, scratch)


def _fork_ranks() -> None:
    """Have ranks on this machine forked: a new process would import torch for two seconds."""
    from isobit.runtime.ranks import launcher
    from isobit.runtime.transport.ticket import RankTicket
    from isobit.runtime.worker.process import run_rank

    class Forked(launcher.LocalLauncher):
        def launch(self, tickets: list[RankTicket]) -> None:
            for ticket in launcher.on_this_machine(tickets):
                child = os.fork()
                if not child:
                    _exit_with(lambda ticket=ticket: run_rank(ticket) or 0)
                self._children[child] = None

        def dead(self) -> dict[int, str]:
            for child, status in self._children.items():
                if status is None and os.waitpid(child, os.WNOHANG)[0]:
                    self._children[child] = "ended"
            states = enumerate(self._children.values())
            return {rank: status for rank, status in states if status is not None}

        def hosts(self) -> list[str]:
            return [os.uname().nodename] * len(self._children)

        def stop(self) -> None:
            for child, status in self._children.items():
                if status is None:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
            self._children.clear()

        def __init__(self) -> None:
            super().__init__()
            self._children: dict[int, str | None] = {}

    launcher.LocalLauncher = Forked  # type: ignore[misc]
    for name, module in list(sys.modules.items()):
        if name.startswith("isobit.") and hasattr(module, "LocalLauncher"):
            module.LocalLauncher = Forked


def _exit_with(run: Callable[[], int]) -> None:
    status = 1
    try:
        status = run()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(status)


def _bounded(run: Callable[[], int], scratch: Path) -> Ended:
    streams = [scratch / "stdout", scratch / "stderr"]
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        for number, path in enumerate(streams, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        _exit_with(run)
    peak, bound = 0, ""
    while True:
        pid, status, _ = os.wait4(child, os.WNOHANG)
        if pid:
            break
        peak = max(peak, _memory(child))
        seconds = time.monotonic() - started
        if peak > MOST_BYTES:
            bound = f"memory: {peak >> 20} MiB"
        elif seconds > MOST_SECONDS:
            bound = f"time: {seconds:.0f} s"
        if bound:
            os.killpg(child, signal.SIGKILL)
        time.sleep(POLL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return Ended(
        os.waitstatus_to_exitcode(status),
        *(path.read_text(errors="surrogateescape") for path in streams),
        time.monotonic() - started,
        peak,
        bound,
    )


def _memory(group: int) -> int:
    """Bytes that the largest process of a group holds."""
    most = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group:
                    most = max(most, int((entry / "statm").read_text().split()[1]))
            except (OSError, IndexError):
                continue  # it ended while we looked
    return most * PAGE
