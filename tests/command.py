"""The `isobit` command in this process: as fast as its work, and as strict about its streams."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isobit.launch.cli.main import main
from isobit.launch.tokenizer.process import PROCESS


@dataclass(frozen=True)
class Outcome:
    """What the command left behind."""

    status: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output; anything else there fails the test."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, self.stdout
        value = json.loads(lines[0])
        assert isinstance(value, dict)
        return value


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `isobit` with arguments; ranks are processes of their own all the same."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["isobit", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capfd.readouterr())

    return run


MARK = "ISOBIT_TEST_MARK"


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The temporary folder of all commands of a test; what they leave in it fails the test.

    So does a process that they leave: descendants are found by a mark in their environment,
    whichever session or parent they ended up with. The path is short, as Unix sockets need it;
    pytest's own folder is made first, outside it.
    """
    assert tmp_path.is_dir()
    # Commands of one process share the process of tokenizers, which outlives the test.
    PROCESS.start()
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv(MARK, folder.name)
    try:
        yield folder
        deadline = time.monotonic() + 60
        while processes_marked(folder.name) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes_marked(folder.name) == []
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def processes_marked(mark: str) -> list[str]:
    """Command lines of the processes that inherited a mark, this one excepted."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                command_line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"{process.name} {command_line}")
        except OSError:
            continue  # it ended while we looked
    return found
