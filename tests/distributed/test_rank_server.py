"""The process that ranks of one machine are forked from: reports, ends, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isobit.runtime.ranks.server import RankServer
from isobit.runtime.transport.address import Address
from isobit.runtime.transport.driver import DriverLink

pytestmark = pytest.mark.timeout(120)
RANKS = 3


@pytest.fixture
def link() -> Iterator[DriverLink]:
    """Ranks of it connect and wait for a job that never comes."""
    link = DriverLink(RANKS, Address())
    yield link
    link.close()


@pytest.fixture
def server() -> Iterator[RankServer]:
    server = RankServer()
    yield server
    server.stop()


def until(met: Callable[[], bool]) -> None:
    while not met():
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def started(server: RankServer, link: DriverLink) -> list[int]:
    for rank in range(RANKS):
        server.fork(link.ticket(rank))
    until(lambda: len(server.pids()) == RANKS)
    return server.pids()


def test_the_environment_of_ranks_can_be_seen(monkeypatch, link):
    monkeypatch.setenv("ISOBIT_TEST_SEEN", "from outside")
    server = RankServer()
    try:
        for pid in started(server, link):
            until(lambda pid=pid: "isobit rank" in Path(f"/proc/{pid}/cmdline").read_text())
            assert "ISOBIT_TEST_SEEN=from outside" in Path(f"/proc/{pid}/environ").read_text()
    finally:
        server.stop()


def test_ranks_outlive_the_thread_that_started_them(link):
    found: list[RankServer] = []
    thread = threading.Thread(target=lambda: found.append(RankServer()))
    thread.start()
    thread.join()
    try:
        pids = started(found[0], link)
        time.sleep(1.5)
        assert [gone(pid) for pid in pids] == [False] * RANKS
    finally:
        found[0].stop()


def test_a_killed_rank_is_reported_by_its_rank_and_signal(server, link):
    pids = started(server, link)
    assert server.statuses(RANKS) == {}
    os.kill(pids[1], signal.SIGKILL)
    until(lambda: bool(server.statuses(RANKS)))
    assert server.statuses(RANKS) == {1: -signal.SIGKILL}
    assert not gone(pids[0])
    assert not gone(pids[2])


def test_ranks_have_titles_that_say_which_they_are(server, link):
    titles = [f"isobit rank {rank}/{RANKS}" for rank in range(RANKS)]
    for pid, title in zip(started(server, link), titles, strict=True):
        until(lambda pid=pid, title=title: title in Path(f"/proc/{pid}/cmdline").read_text())


def test_ranks_are_gone_when_stop_returns(server, link):
    pids = started(server, link)
    server.stop()
    assert [gone(pid) for pid in pids] == [True] * RANKS


def test_ranks_die_with_a_server_that_is_killed_and_all_are_reported(server, link):
    pids = started(server, link)
    parent = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    until(lambda: all(map(gone, pids)))
    until(lambda: len(server.statuses(RANKS)) == RANKS)
    assert set(server.statuses(RANKS).values()) == {-signal.SIGKILL}


def test_a_server_that_cannot_import_is_every_rank_ended(monkeypatch, link, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = RankServer()
    try:
        server.fork(link.ticket(0))
        until(lambda: bool(server.statuses(1)))
        assert server.statuses(1) == {0: 7}
    finally:
        server.stop()


def test_a_folder_brings_no_modules_into_ranks(link, tmp_path):
    """As a model folder that is the current one would, when somebody has put code there."""
    (tmp_path / "json.py").write_text("raise SystemExit('code of a model folder has run')")
    script = (
        "import sys, time; sys.path.remove('');"
        "from isobit.runtime.ranks.server import RankServer;"
        "from isobit.runtime.transport.ticket import RankTicket;"
        f"server = RankServer(); server.fork(RankTicket(**{vars(link.ticket(0))!r}));"
        "\nwhile not (server.pids() or server.statuses(1)): time.sleep(0.02)"
        "\nprint(len(server.pids())); server.stop()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "1\n", shown.stderr
