"""Folders for sockets: only their owner opens them, and the dead leave none for good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isobit.runtime.transport.private_folder import PrivateFolder, remove_left_over

MAKES = """
import json, os, signal, sys
from isobit.runtime.transport.private_folder import PrivateFolder
print(json.dumps([str(PrivateFolder(kind, 7).path) for kind in ("", "ray-")]), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def made_by(how: str) -> tuple[subprocess.Popen[str], list[Path]]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKES, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, [Path(name) for name in json.loads(process.stdout.readline())]


@pytest.mark.timeout(60)
def test_folders_of_the_killed_go_when_the_next_is_made_and_those_of_the_living_stay():
    killed, left = made_by("killed")
    assert killed.wait() == -signal.SIGKILL
    living, kept = made_by("living")
    assert [folder.exists() for folder in left] == [False, False]
    own = PrivateFolder("", 7)
    assert all(folder.exists() for folder in kept)
    assert own.path.stat().st_mode & 0o077 == 0
    own.close()
    own.close()
    assert not own.path.exists()
    living.communicate()


def test_what_no_driver_has_made_is_left_alone(temporary):
    folders = [temporary / name for name in ("isobit-abcdefgh", "isobit-notes", "isobit-x")]
    for folder in folders:
        folder.mkdir(mode=0o700)
    (folders[1] / "lock").touch()
    victim = temporary / "victim"
    victim.mkdir(mode=0o700)
    (victim / "lock").touch()
    link = temporary / "isobit-ray-abcdefgh"
    link.symlink_to(victim)
    wide = temporary / "isobit-12345678"
    wide.mkdir()
    wide.chmod(0o755)
    (wide / "lock").touch()
    remove_left_over(temporary)
    assert all(folder.exists() for folder in [*folders, victim, wide])
    assert os.path.lexists(link)
