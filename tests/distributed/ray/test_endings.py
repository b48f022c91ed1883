"""A private Ray that is struck while a model runs: one code, soon, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ...command import processes_marked, scratch
from ...support import INT4

pytestmark = pytest.mark.long

__all__ = ["scratch"]

ARGUMENTS = ("generate", INT4, "-tp", "2", "--prompt-ids", "5,6", "--max-tokens", "1000")
COMMAND = [sys.executable, "-m", "isobit.launch.cli", *map(str, ARGUMENTS), "--ignore-eos"]
# Ray would wait for a minute before it ends the driver.
ENDS_WITHIN_S = 50


def after_the_first_token(
    launcher: str, strike: Callable[[subprocess.Popen[bytes]], None]
) -> tuple[int, str]:
    """Exit status and standard error of a run that is struck when it has begun to answer."""
    process = subprocess.Popen(
        [*COMMAND, "--launcher", launcher],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.read(1).isdigit()
        strike(process)
        _, said = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said.decode()


def private_folders(scratch: Path) -> list[Path]:
    return [folder for folder in scratch.iterdir() if folder.name.startswith("isobit-ray-")]


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same in IPv6, and ::1, as /proc/net has them."""


def listening(scratch: Path) -> list[tuple[str, str]]:
    """The sockets at which processes of a test listen over TCP: inode and address."""
    own = set()
    for process in processes_marked(scratch.name):
        for file in Path(f"/proc/{process.split()[0]}/fd").iterdir():
            with contextlib.suppress(OSError):
                own.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
    tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    return [(x[9], x[1].partition(":")[0]) for x in lines if x[3] == "0A" and x[9] in own]


@pytest.mark.timeout(200)
def test_a_signal_to_the_whole_group_is_an_interrupt(scratch):
    """As `timeout` sends it: Ray's own processes end by it, before this one can ask them to."""

    def strike(process: subprocess.Popen[bytes]) -> None:
        [folder] = private_folders(scratch)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        heard = listening(scratch)
        assert len(heard) >= 4
        assert {address for _, address in heard} <= LOOPBACK
        os.killpg(process.pid, signal.SIGTERM)

    status, said = after_the_first_token("ray", strike)
    assert (status, said.strip()) == (130, "E-INTERRUPTED stopped; every process was ended")


@pytest.mark.timeout(200)
def test_the_death_of_the_head_is_named(scratch):
    def strike(_process: subprocess.Popen[bytes]) -> None:
        [head] = [p for p in processes_marked(scratch.name) if "gcs_server" in p.split()[1]]
        os.kill(int(head.split()[0]), signal.SIGKILL)

    status, said = after_the_first_token("ray", strike)
    assert status == 1, said
    assert re.match(r"E-RANK-DIED step \d+: rank 0 is lost on .*: the head of Ray has ended", said)


@pytest.mark.timeout(200)
def test_what_a_killed_driver_leaves_goes_with_the_next(scratch):
    status, _ = after_the_first_token("local", lambda process: process.kill())
    assert status == -signal.SIGKILL
    assert len(list(scratch.iterdir())) == 1
    short = [*COMMAND, "--launcher", "local", "--max-tokens", "1"]
    assert subprocess.run(short, timeout=100, capture_output=True).returncode == 0
    assert list(scratch.iterdir()) == []
