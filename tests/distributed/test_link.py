"""The wire between driver and ranks: strangers are ignored, the silent and the dead are named."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import zmq
from isobit.kernels.errors import RankFault
from isobit.runtime import wire
from isobit.runtime.config import EngineSettings, SamplingSettings
from isobit.runtime.engine import Engine
from isobit.runtime.launcher import LocalLauncher
from isobit.runtime.link import Address, DriverLink, RankLink
from isobit.runtime.network import split
from isobit.runtime.ticket import RankTicket
from isobit.shard.plan import PlanSettings

from ..proxy import Proxy
from ..support import INT4


def nobody() -> dict[int, str]:
    return {}


@pytest.fixture
def host() -> str | None:
    """A Unix socket, where a test does not say otherwise."""
    return None


BOTH_TRANSPORTS = pytest.mark.parametrize("host", [None, "127.0.0.1"], ids=["unix", "tcp"])


@pytest.fixture
def driver(host) -> Iterator[DriverLink]:
    link = DriverLink(2, Address(host=host))
    yield link
    link.close()


@pytest.fixture
def join(driver):
    """Connect a rank, perhaps with a ticket that was tampered with."""
    opened: list[RankLink] = []

    def connect(rank: int, **changed: object) -> RankLink:
        opened.append(RankLink(dataclasses.replace(driver.ticket(rank), **changed)))
        return opened[-1]

    yield connect
    for link in opened:
        link.close()


class Stranger:
    """A peer that speaks the protocol, with an identity and messages of its own."""

    def __init__(self, ticket: RankTicket, identity: bytes) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.LINGER, 0)
        if ticket.server_key:
            self.socket.curve_serverkey = ticket.server_key.encode()
            self.socket.curve_publickey = ticket.public_key.encode()
            self.socket.curve_secretkey = ticket.secret_key.encode()
        self.socket.connect(ticket.endpoint)

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def stranger(driver):
    opened: list[Stranger] = []

    def connect(identity: bytes, *frames: bytes) -> Stranger:
        opened.append(Stranger(driver.ticket(0), identity))
        opened[-1].socket.send_multipart(frames)
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def greetings(driver: DriverLink, timeout_s: float = 20) -> dict[int, dict]:
    return driver.collect("hello", "greeting", timeout_s, nobody, stop_at_error=True)


def silence(driver: DriverLink, kind: str = "hello") -> str:
    """What the driver says when a message has come in and is not of those it waits for."""
    assert driver._socket.poll(20_000)
    with pytest.raises(RankFault) as caught:
        driver.collect(kind, "waiting", 0, nobody, stop_at_error=True)
    assert caught.value.code == "E-RANK-TIMEOUT"
    return caught.value.message


BOTH_SILENT = "waiting: no answer within 0 s from rank 0, rank 1"


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


@pytest.mark.parametrize("secret", [None, 7, ["x"], {"a": 1}], ids=str)
def test_a_secret_of_another_type_is_ignored(driver, stranger, secret):
    stranger(b"0", wire.encode({"kind": "hello", "secret": secret}))
    assert silence(driver) == BOTH_SILENT


@pytest.mark.parametrize("identity", [b"2", b"-1", b"rank", b"00", b" 0", b"\xff", b"1" * 200])
def test_a_peer_with_a_wrong_rank_is_ignored(driver, stranger, identity):
    stranger(identity, wire.encode({"kind": "hello", "secret": driver.ticket(0).secret}))
    assert silence(driver) == BOTH_SILENT


@BOTH_TRANSPORTS
def test_nobody_speaks_for_a_rank_that_has_greeted(driver, join, stranger):
    join(0), join(1)
    greetings(driver)
    stranger(b"01", wire.encode({"kind": "loaded"}))
    assert silence(driver, "loaded") == BOTH_SILENT


def test_a_peer_that_has_not_greeted_is_ignored(driver, stranger):
    stranger(b"0", wire.encode({"kind": "stepped"}))
    assert silence(driver, "stepped") == BOTH_SILENT


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x93\x01", wire.encode({})], ids=repr)
def test_frames_that_are_no_message_are_ignored(driver, stranger, frame):
    stranger(b"1", frame)
    assert silence(driver) == BOTH_SILENT


def test_without_the_keys_of_a_ticket_nothing_gets_through_tcp():
    """CURVE ends the handshake: not even a right secret is read."""
    link = DriverLink(1, Address(host="127.0.0.1"))
    ticket = dataclasses.replace(link.ticket(0), server_key="")
    peer = RankLink(ticket)
    assert not link._socket.poll(300)
    link.close()
    peer._socket.setsockopt(zmq.LINGER, 0)
    peer.close()


@pytest.mark.parametrize("host", ["127.0.0.1"], ids=["tcp"])
def test_a_rank_hears_nobody_but_the_driver_of_its_ticket(join):
    """Another driver at the same address has not the key that the ticket names."""
    false = DriverLink(2, Address(host="127.0.0.1"))
    rank = join(0, endpoint=false.endpoint)
    assert not false._socket.poll(300)
    with pytest.raises(RankFault, match="rank 0 cannot be reached"):
        false.send(0, {"kind": "step"})
    assert not rank._socket.poll(0)
    rank._socket.setsockopt(zmq.LINGER, 0)
    false.close()


def test_a_message_beyond_the_limit_is_refused_before_it_is_read(monkeypatch):
    """ZeroMQ knows the size from the header and takes no memory for the rest."""
    monkeypatch.setattr(wire, "MOST_MESSAGE_BYTES", 4096)
    link = DriverLink(1, Address(host="127.0.0.1"))
    rank = RankLink(link.ticket(0))
    assert set(greetings(link)) == {0}
    rank._socket.send(b"x" * 5000)
    # Whoever sends such a thing is no rank any more.
    with pytest.raises(RankFault) as caught:
        link.collect("stepped", "step 1", 5, nobody, stop_at_error=True)
    assert caught.value.code == "E-HOST-LOST"
    rank._socket.setsockopt(zmq.LINGER, 0)
    rank.close()
    link.close()


RANK_ALONE = """
import json, sys
from isobit.runtime import heartbeat, rank_process
from isobit.runtime.ticket import RankTicket
heartbeat.SILENT_MS, heartbeat.DRIVER_RETURNS_S = 1000, 1.0
rank_process.run_rank(RankTicket(**json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("end", ["driver", "cable"])
def test_a_rank_on_another_host_ends_when_the_driver_or_the_way_to_it_does(end):
    link = DriverLink(1, Address(host="127.0.0.1"))
    proxy = Proxy(split(link.endpoint)[1])
    ticket = dataclasses.replace(link.ticket(0), endpoint=f"tcp://127.0.0.1:{proxy.port}")
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK_ALONE, json.dumps(dataclasses.asdict(ticket))],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        greetings(link, 30)
        if end == "cable":
            proxy.cut()
        else:
            link.close()
        _, said = rank.communicate(timeout=20)
    finally:
        rank.kill()
        proxy.close()
        if end == "cable":
            link.close()
    assert (rank.returncode, said) == (1, "isobit: the driver is gone, and with it this rank\n")


def test_a_stranger_keeps_no_rank_from_joining(driver, join, stranger):
    stranger(b"7", wire.encode({"kind": "hello", "secret": "guess"}))
    join(0), join(1)
    assert set(greetings(driver)) == {0, 1}


def test_a_timeout_names_what_was_waited_for_and_the_silent_ranks_alone(driver, join):
    join(0)
    assert silence(driver) == "waiting: no answer within 0 s from rank 1"


def test_a_dead_rank_is_named_long_before_the_timeout(driver, join):
    join(0)
    started = time.monotonic()
    with pytest.raises(RankFault) as caught:
        driver.collect(
            "hello", "starting", 60, lambda: {1: "was killed by signal 9"}, stop_at_error=True
        )
    assert caught.value.code == "E-RANK-DIED"
    assert caught.value.message == "starting: rank 1 was killed by signal 9"
    assert time.monotonic() - started < 5


def test_a_rank_that_answered_may_die_afterwards(driver, join):
    """Only the missing are looked for among the dead."""
    join(0), join(1)
    answers = driver.collect("hello", "starting", 20, lambda: {0: "ended"}, stop_at_error=True)
    assert set(answers) == {0, 1}


LAST_WORDS = {"kind": "error", "code": "E-COLL-FAILED", "message": "no peer", "fault": True}


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


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_during_generation_is_named_within_seconds(victim):
    launcher = LocalLauncher()
    killed_at: list[float] = []

    def kill(_request: int, _token: int) -> None:
        if not killed_at:
            launcher._processes[victim].kill()
            killed_at.append(time.monotonic())

    settings = EngineSettings(plan=PlanSettings(degree=2))
    sampling = SamplingSettings(max_tokens=200, ignore_eos=True)
    with Engine(INT4, settings, launcher) as engine:
        processes = list(launcher._processes)
        with pytest.raises(RankFault) as caught:
            engine.generate([[1, 2, 3]], [sampling], kill)
        # Long before the collective's own timeout of a minute, or the step's of five.
        assert time.monotonic() - killed_at[0] < 15
    assert caught.value.code == "E-RANK-DIED"
    assert f"rank {victim}" in caught.value.message
    assert f"rank {1 - victim}" not in caught.value.message
    assert all(process.poll() is not None for process in processes)
