"""What no code has foreseen ends as one coded message with exit status 2, never as a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from isobit.errors import RankFault
from isobit.kernels.unexpected import VARIABLE, unexpected
from isobit.launch.cli import main as main_module
from isobit.runtime.worker.process import _unexpected

from ...command import command
from ...support import INT4

__all__ = ["command"]

RAISED = [
    (MemoryError(), "E-MEMORY", "environment"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "E-MEMORY", ""),
    (RecursionError("maximum recursion depth exceeded"), "E-RECURSION", "internal"),
    (OSError(errno.ENOSPC, "No space left on device", "/x/f"), "E-DISK-FULL", "environment"),
    (OSError(errno.EMFILE, "Too many open files"), "E-OPEN-FILES", "environment"),
    (PermissionError(errno.EACCES, "Permission denied", "/x/f"), "E-SYSTEM", "environment"),
    (ModuleNotFoundError("No module named 'numpy'"), "E-IMPORT", "environment"),
    (ZeroDivisionError("division by zero"), "E-INTERNAL", "internal"),
    (AssertionError(), "E-INTERNAL", "internal"),
]


@pytest.mark.parametrize(("error", "code", "kind"), RAISED, ids=lambda each: str(each)[:30])
@pytest.mark.parametrize("as_json", [False, True])
def test_every_exception_is_one_coded_message(monkeypatch, command, error, code, kind, as_json):
    def run(_as_json: bool) -> int:
        raise error

    monkeypatch.setattr(main_module, "_run", run)
    outcome = command("plan", *(("--json",) if as_json else ()))
    assert outcome.status == 2
    assert "Traceback" not in outcome.stderr
    if as_json:
        said = outcome.json()["error"]
        assert said["code"] == code
        assert said["kind"].startswith(kind)
        for part in (getattr(error, "strerror", None), getattr(error, "filename", None)):
            assert part is None or part in said["message"]
    else:
        assert outcome.stderr.startswith(f"{code} ")
        assert outcome.stdout == ""


def test_a_message_says_where_and_a_switch_shows_the_rest(monkeypatch, command):
    def run(_as_json: bool) -> int:
        return int("x")

    monkeypatch.setattr(main_module, "_run", run)
    outcome = command("plan")
    assert "ValueError: invalid literal for int()" in outcome.stderr
    assert "test_unexpected_errors.py:" in outcome.stderr or "main.py:" in outcome.stderr
    monkeypatch.setenv(VARIABLE, "1")
    assert "Traceback (most recent call last)" in command("plan").stderr


def test_an_exception_of_a_rank_names_it(monkeypatch):
    said = _unexpected(ValueError("odd"), 3)
    assert (said["code"], said["error_kind"]) == ("E-RANK-FAILED", RankFault.kind)
    assert "Traceback" not in said["message"]
    said = _unexpected(MemoryError(), 3)
    assert (said["code"], said["error_kind"]) == ("E-MEMORY", "environment")
    assert said["message"].startswith("rank 3: ")
    monkeypatch.setenv(VARIABLE, "1")
    assert "\nMemoryError: none left" in _unexpected(MemoryError("none left"), 3)["message"]


def test_long_texts_are_cut():
    assert len(unexpected(ValueError("x" * 10_000)).message) < 700


@pytest.mark.timeout(120)
@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_a_full_disk_under_the_output_is_said_on_standard_error(extra):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "isobit.launch.cli", "plan", str(INT4), *extra],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
    assert done.returncode == 2
    assert done.stderr.startswith("E-DISK-FULL No space left on device"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": "isobit-replay-1", "requests": [{"prompt": [Infinity], "emitted": []}]}',
        '{"format": "isobit-replay-1", "requests": [{"prompt": [1e999], "emitted": []}]}',
        '{"format": "isobit-replay-1", "requests": [], "plan": {}}',
        "7",
    ],
    ids=["nested", "Infinity", "1e999", "empty", "a number"],
)
@pytest.mark.timeout(60)
def test_files_that_are_no_replay_are_refused(command, tmp_path, text):
    path = tmp_path / "replay.json"
    path.write_text(text)
    for arguments in (("verify", INT4, "--replay", path), ("doctor", "--replay", path)):
        outcome = command(*arguments, "--json")
        assert outcome.status == 2
        assert outcome.json()["error"]["code"] == "E-REPLAY"


@pytest.mark.timeout(60)
def test_a_pipe_is_no_replay(command, tmp_path):
    os.mkfifo(tmp_path / "replay.json")
    outcome = command("verify", INT4, "--replay", tmp_path / "replay.json", "--json")
    assert json.loads(outcome.stdout)["error"]["code"] == "E-REPLAY"
