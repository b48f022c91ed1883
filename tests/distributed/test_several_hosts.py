"""Whole runs over hosts that are names only: one host's bits, and a lost host is named in time."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isobit.errors import IsobitError, RankFault
from isobit.runtime.engine.engine import Engine
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.tasks.verify import verify
from isobit.runtime.transport import heartbeat
from isobit.runtime.transport.interfaces import split
from isobit.runtime.transport.ticket import RankTicket
from isobit.runtime.worker.forked_launcher import ForkedLauncher
from isobit.shard.plan.plan import PlanSettings

from ..proxy import Proxy
from ..several_hosts import HostsLauncher
from ..support import INT4

PROMPTS = [[(7 * i * i + i) % 1990 for i in range(length)] for length in (1, 70)]
LONG = SamplingSettings(max_tokens=400, ignore_eos=True)


def settings(degree: int, **changes) -> EngineSettings:
    return EngineSettings(plan=PlanSettings(degree=degree), **changes)


def test_verify_is_identical_between_one_host_and_three(caplog):
    hosts = iter([None, [1, 1], [1, 1, 1], [2, 1, 1], [1, 3], [2, 2, 1]])

    def launcher() -> ForkedLauncher:
        ranks = next(hosts)
        return ForkedLauncher() if ranks is None else HostsLauncher(ranks)

    with caplog.at_level(logging.INFO):
        # A degree is verified once, so the second cut of four ranks is a run of its own.
        found = verify(INT4, [1, 2, 3, 4], settings(1), PROMPTS, 5, launcher)
        again = verify(INT4, [4, 5], settings(1), PROMPTS, 5, launcher)
    assert found.difference is None and again.difference is None
    digests = {each.digest for each in (*found.degrees.values(), *again.degrees.values())}
    assert len(digests) == 1
    assert "all-reduce: hierarchical, ranks are on 3 hosts (2 + 1 + 1 ranks)" in caplog.text
    assert "all-reduce: hierarchical, ranks are on 2 hosts (1 + 3 ranks)" in caplog.text
    assert "rank 3 on host box-2: lo (127.0.0.1), the route to 127.0.0.1" in caplog.text


@pytest.mark.parametrize("mode", ["gather", "library", "hierarchical"])
def test_each_mode_that_was_asked_for_is_taken_over_hosts(mode):
    with Engine(INT4, settings(3, all_reduce=mode), HostsLauncher([2, 1])) as engine:
        assert {rank["all_reduce"]["name"] for rank in engine.ranks} == {mode}
        assert [rank["host"] for rank in engine.ranks] == ["box-0", "box-0", "box-1"]


def test_custom_sums_are_refused_over_hosts_and_the_way_out_is_named():
    with (
        pytest.raises(IsobitError) as caught,
        Engine(INT4, settings(3, all_reduce="custom"), HostsLauncher([2, 1])),
    ):
        pass
    assert caught.value.code == "E-COLL-CUSTOM"
    assert "2 hosts (2 + 1 ranks); --all-reduce hierarchical" in str(caught.value)


def lose(launcher: HostsLauncher, how, ranks: int) -> RankFault:
    """Start a long generation, do `how` at its first token; the fault."""
    done: list[int] = []

    def at_first(_request: int, _token: int) -> None:
        if not done:
            how()
            done.append(1)

    with Engine(INT4, settings(ranks), launcher) as engine:
        with pytest.raises(RankFault) as caught:
            engine.generate([PROMPTS[0]], [LONG], at_first)
        pids = [launcher.pid(rank) for rank in range(ranks)]
    for pid in pids:
        assert not Path(f"/proc/{pid}").exists()
    return caught.value


def test_a_stopped_host_is_named_and_a_new_run_starts_at_once():
    launcher = HostsLauncher([2, 1])
    fault = lose(launcher, lambda: os.kill(launcher.pid(2), signal.SIGSTOP), 3)
    assert fault.code == "E-HOST-LOST" and fault.exit_status == 1
    assert "no heartbeat for 8 s\n  host box-1 with rank 2 is lost" in fault.message
    assert "box-0" not in fault.message
    with Engine(INT4, settings(3), HostsLauncher([2, 1])) as engine:
        short = SamplingSettings(max_tokens=2, ignore_eos=True)
        assert len(engine.generate([PROMPTS[0]], [short]).completions[0].tokens) == 2


@pytest.fixture
def impatient(monkeypatch) -> Iterator[None]:
    """A rank is lost after a second and a half."""
    monkeypatch.setattr(heartbeat, "SILENT_MS", 1500)
    return


@pytest.mark.usefixtures("impatient")
def test_a_stopped_rank_whose_neighbour_answers_is_named_alone():
    launcher = HostsLauncher([1, 2])
    fault = lose(launcher, lambda: os.kill(launcher.pid(2), signal.SIGSTOP), 3)
    assert fault.code == "E-HOST-LOST"
    assert "\n  rank 2 on host box-1, whose other ranks answer" in fault.message
    assert "rank 1" not in fault.message


@pytest.mark.usefixtures("impatient")
def test_a_killed_rank_is_called_dead_not_lost():
    launcher = HostsLauncher([2, 1])
    fault = lose(launcher, lambda: os.kill(launcher.pid(2), signal.SIGKILL), 3)
    assert fault.code == "E-RANK-DIED"
    assert "rank 2 was killed by signal 9" in fault.message


class CutLauncher(HostsLauncher):
    """The ranks of the last host reach the driver through a cable that can be cut."""

    proxy: Proxy

    def launch(self, tickets: list[RankTicket]) -> None:
        self.proxy = Proxy(split(tickets[0].endpoint)[1])
        far = f"tcp://127.0.0.1:{self.proxy.port}"
        near = len(tickets) - self._ranks[-1]
        moved = [dataclasses.replace(ticket, endpoint=far) for ticket in tickets[near:]]
        super().launch(tickets[:near] + moved)


@pytest.mark.usefixtures("impatient")
def test_a_cut_cable_is_named_with_all_ranks_behind_it():
    launcher = CutLauncher([1, 2])
    fault = lose(launcher, lambda: launcher.proxy.cut(), 3)
    launcher.proxy.close()
    assert fault.code == "E-HOST-LOST"
    assert "\n  host box-1 with ranks 1, 2 is lost" in fault.message


@pytest.mark.usefixtures("impatient")
def test_a_cable_cut_between_two_requests_is_named_at_the_next():
    launcher = CutLauncher([1, 1])
    short = SamplingSettings(max_tokens=2, ignore_eos=True)
    with Engine(INT4, settings(2), launcher) as engine:
        engine.generate([PROMPTS[0]], [short])
        launcher.proxy.cut()
        time.sleep(2.5)
        with pytest.raises(RankFault, match="host box-1 with rank 1 is lost") as caught:
            engine.generate([PROMPTS[0]], [short])
    launcher.proxy.close()
    assert caught.value.code == "E-HOST-LOST"


@pytest.mark.usefixtures("impatient")
def test_a_rank_that_computes_longer_than_the_heartbeats_last_is_not_lost(monkeypatch):
    """Not even while it holds the lock of its interpreter."""
    monkeypatch.setenv("ISOBIT_FAULT", "tests.several_hosts:hold_the_interpreter")
    with Engine(INT4, settings(2), HostsLauncher([1, 1])) as engine:
        short = SamplingSettings(max_tokens=3, ignore_eos=True)
        assert len(engine.generate([PROMPTS[0]], [short]).completions[0].tokens) == 3
