"""The wire between driver and ranks: the silent and the dead are named, strangers ignored."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isobit.errors import RankFault
from isobit.runtime.engine.engine import Engine
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.transport import unix
from isobit.runtime.transport.address import Address
from isobit.runtime.transport.driver import DriverLink
from isobit.runtime.transport.interfaces import split
from isobit.runtime.transport.ticket import RankTicket
from isobit.shard.plan.plan import PlanSettings

from ...links import BOTH_SILENT, BOTH_TRANSPORTS, greetings, nobody, silence
from ...proxy import Proxy
from ...support import INT4


@BOTH_TRANSPORTS
def test_messages_go_both_ways(driver, join):
    ranks = [join(0), join(1)]
    assert set(greetings(driver)) == {0, 1}
    driver.send(1, {"kind": "step", "step": 7})
    assert ranks[1].receive() == {"kind": "step", "step": 7}
    for rank, link in enumerate(ranks):
        link.send({"kind": "stepped", "from": rank})
    answers = driver.collect("stepped", "step 7", 20, nobody, stop_at_error=True)
    assert {rank: answer["from"] for rank, answer in answers.items()} == {0: 0, 1: 1}


@BOTH_TRANSPORTS
@pytest.mark.parametrize("secret", ["", "0" * 32, "not the sécret"])
def test_a_peer_with_a_wrong_secret_is_ignored(driver, join, secret):
    join(1, secret=secret)
    assert silence(driver) == BOTH_SILENT


RANK_ALONE = """
import json, sys
from isobit.runtime.worker import process
from isobit.runtime.transport import heartbeat
from isobit.runtime.transport.ticket import RankTicket
heartbeat.SILENT_MS, heartbeat.DRIVER_RETURNS_S = 1000, 1.0
process.run_rank(RankTicket(**json.loads(sys.argv[1])))
"""


def rank_alone(ticket: RankTicket) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RANK_ALONE, json.dumps(dataclasses.asdict(ticket))],
        stderr=subprocess.PIPE,
        text=True,
    )


@BOTH_TRANSPORTS
def test_a_rank_ends_when_the_driver_has_hung_up(host):
    link = DriverLink(1, Address(host=host))
    rank = rank_alone(link.ticket(0))
    try:
        greetings(link, 30)
    finally:
        link.close()
    _, said = rank.communicate(timeout=100)
    assert (rank.returncode, said) == (1, "isobit: the driver is gone, and with it this rank\n")


def test_a_rank_on_another_host_ends_when_the_way_to_the_driver_is_cut():
    link = DriverLink(1, Address(host="127.0.0.1"))
    proxy = Proxy(split(link.ticket(0).endpoint)[1])
    rank = rank_alone(dataclasses.replace(link.ticket(0), endpoint=f"tcp://127.0.0.1:{proxy.port}"))
    try:
        greetings(link, 30)
        proxy.cut()
        _, said = rank.communicate(timeout=100)
    finally:
        rank.kill()
        proxy.close()
        link.close()
    assert (rank.returncode, said) == (1, "isobit: the driver is gone, and with it this rank\n")


def test_a_timeout_names_what_was_waited_for_and_the_silent_ranks_alone(driver, join):
    join(0)
    assert silence(driver) == "waiting: no answer within 0 s from rank 1"


def test_a_dead_rank_is_named_long_before_the_timeout(driver, join):
    join(0)
    with pytest.raises(RankFault) as caught:
        driver.collect(
            "hello", "starting", 3600, lambda: {1: "was killed by signal 9"}, stop_at_error=True
        )
    assert caught.value.code == "E-RANK-DIED"
    assert caught.value.message == "starting: rank 1 was killed by signal 9"


def test_a_rank_that_answered_may_die_afterwards(driver, join):
    """Only the missing are looked for among the dead."""
    join(0), join(1)
    answers = driver.collect("hello", "starting", 20, lambda: {0: "ended"}, stop_at_error=True)
    assert set(answers) == {0, 1}


LAST_WORDS = {"kind": "error", "code": "E-COLL-FAILED", "message": "no peer", "error_kind": "rank"}


def test_a_rank_that_ends_after_its_last_words_is_not_called_dead(driver, join):
    """Two ranks report the same broken collective and end; the first to report is not alone."""
    ranks = [join(0), join(1)]
    greetings(driver)
    for rank in ranks:
        rank.send(LAST_WORDS)
    ended = {0: "ended with status 0", 1: "ended with status 0"}
    answers = driver.collect("stepped", "step 2", 20, lambda: ended, stop_at_error=True)
    assert {rank: answer["kind"] for rank, answer in answers.items()} == {0: "error", 1: "error"}


def test_a_rank_that_ended_between_two_looks_has_its_last_words_read(driver, join):
    """It is found dead before its message is: the message counts."""
    ranks = [join(0), join(1)]
    greetings(driver)
    ranks[0].send(LAST_WORDS)

    def dead() -> dict[int, str]:
        ranks[1].send(LAST_WORDS)
        return {1: "ended with status 0"}

    answers = driver.collect("stepped", "step 2", 20, dead, stop_at_error=True)
    assert set(answers) == {0, 1}


def test_a_rank_that_died_without_a_word_is_named_before_those_it_broke(driver, join):
    ranks = [join(0), join(1)]
    greetings(driver)
    ranks[0].send(LAST_WORDS)
    with pytest.raises(RankFault) as caught:
        driver.collect(
            "stepped", "step 2", 20, lambda: {1: "was killed by signal 9"}, stop_at_error=True
        )
    assert caught.value.message == "step 2: rank 1 was killed by signal 9"


def test_sending_to_a_rank_that_never_came_is_an_error(driver):
    with pytest.raises(RankFault, match="rank 1") as caught:
        driver.send(1, {"kind": "step"})
    assert caught.value.code == "E-RANK-DIED"


def test_nothing_is_left_of_a_closed_link():
    link = DriverLink(1, Address())
    assert link.folder.stat().st_mode & 0o077 == 0
    link.close()
    assert not link.folder.exists()


# Less than the step's own timeout; that of a collective would not name the rank alone.
@pytest.mark.timeout(200)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_during_generation_is_named(victim):
    launcher = LocalLauncher()
    killed: list[int] = []

    def kill(_request: int, _token: int) -> None:
        if not killed:
            os.kill(launcher.pids()[victim], signal.SIGKILL)
            killed.append(victim)

    settings = EngineSettings(plan=PlanSettings(degree=2))
    sampling = SamplingSettings(max_tokens=200, ignore_eos=True)
    with Engine(INT4, settings, launcher) as engine:
        processes = launcher.pids()
        with pytest.raises(RankFault) as caught:
            engine.generate([[1, 2, 3]], [sampling], kill)
    assert caught.value.code == "E-RANK-DIED"
    assert f"rank {victim}" in caught.value.message
    assert f"rank {1 - victim}" not in caught.value.message
    assert len(processes) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)


FAILED = {"kind": "error", "code": "E-NUM-LOGITS", "message": "broken", "error_kind": "rank"}


@pytest.mark.timeout(60)
@BOTH_TRANSPORTS
def test_an_error_behind_an_answer_is_raised_at_once_and_not_the_silence_of_others(driver, join):
    """Rank 1 has made its step and fails in the next, for which rank 0 waits in a collective."""
    ranks = [join(0), join(1)]
    greetings(driver)
    ranks[1].send({"kind": "stepped"})
    ranks[1].send(FAILED)
    answers = driver.collect("stepped", "step 2", 3600, nobody, stop_at_error=True)
    assert {rank: answer["kind"] for rank, answer in answers.items()} == {1: "error"}
    assert answers[1]["code"] == "E-NUM-LOGITS"


@pytest.mark.timeout(60)
def test_an_error_behind_an_answer_does_not_spoil_a_step_that_all_have_made(driver, join):
    ranks = [join(0), join(1)]
    greetings(driver)
    ranks[1].send({"kind": "stepped"})
    ranks[1].send(FAILED)
    ranks[0].send({"kind": "stepped"})
    answers = driver.collect("stepped", "step 2", 3600, nobody, stop_at_error=True)
    assert {answer["kind"] for answer in answers.values()} == {"stepped"}
    ranks[0].send({"kind": "stepped"})
    after = driver.collect("stepped", "step 3", 3600, nobody, stop_at_error=True)
    assert after[1]["code"] == "E-NUM-LOGITS"


@pytest.mark.timeout(60)
def test_a_rank_that_dies_behind_its_answer_is_named_when_others_wait_for_it(driver, join):
    ranks = [join(0), join(1)]
    greetings(driver)
    ranks[1].send({"kind": "stepped"})
    with pytest.raises(RankFault, match="step 2: rank 1 was killed by signal 9") as caught:
        driver.collect(
            "stepped", "step 2", 3600, lambda: {1: "was killed by signal 9"}, stop_at_error=True
        )
    assert caught.value.code == "E-RANK-DIED"


@pytest.mark.timeout(60)
def test_ranks_that_failed_to_load_and_ended_do_not_hurry_the_others(driver, join):
    """All errors of loading are reported, those of slow ranks too."""
    ranks = [join(0), join(1)]
    greetings(driver)
    ranks[1].send(FAILED)

    def dead() -> dict[int, str]:
        looks.append(0)
        if len(looks) == 40:
            ranks[0].send(FAILED)
        return {1: "ended with status 0"}

    looks: list[int] = []
    answers = driver.collect("loaded", "loading", 3600, dead, stop_at_error=False)
    assert set(answers) == {0, 1}


STOPS = """
import json, os, signal, sys
from isobit.runtime.transport.rank import connect
from isobit.runtime.transport.ticket import RankTicket
link = connect(RankTicket(**json.loads(sys.argv[1])))
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.timeout(120)
def test_a_rank_that_is_stopped_while_it_loads_is_named(driver, join, monkeypatch):
    monkeypatch.setattr(unix, "STOPPED_S", 0.5)
    rank = subprocess.Popen([sys.executable, "-c", STOPS, json.dumps(vars(driver.ticket(1)))])
    try:
        join(0)
        greetings(driver, 60)
        with pytest.raises(RankFault) as caught:
            driver.collect("loaded", "loading the weights", 3600, nobody, stop_at_error=False)
    finally:
        rank.kill()
        rank.wait()
    assert caught.value.code == "E-RANK-STOPPED"
    assert (
        f"loading the weights: rank 1 is stopped: `kill -CONT {rank.pid}`" in caught.value.message
    )
    assert "rank 0" not in caught.value.message
