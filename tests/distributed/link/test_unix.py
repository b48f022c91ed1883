"""On one host: streams of frames, which neither strangers nor the slow can bring to a stop."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from isobit.errors import EnvironmentFault, RankFault
from isobit.runtime.transport import unix, wire
from isobit.runtime.transport.address import Address
from isobit.runtime.transport.driver import DriverLink
from isobit.runtime.transport.frames import framed
from isobit.runtime.transport.messages import DriverGone
from isobit.runtime.transport.rank import connect

from ...links import BOTH_SILENT, greetings, nobody, silence


@pytest.fixture
def stranger(driver) -> Iterator[socket.socket]:
    """A connection of whoever may open the socket."""
    path = driver.ticket(0).endpoint.removeprefix(unix.SCHEME)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(path)
        yield connection


def hung_up(connection: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def hello(driver: DriverLink, **changed: object) -> bytes:
    secret = driver.ticket(0).secret
    return framed(wire.encode({"kind": "hello", "rank": 0, "secret": secret} | changed))


@pytest.mark.parametrize("secret", [None, 7, ["x"], {"a": 1}], ids=str)
def test_who_shows_a_secret_of_another_type_is_hung_up_on(driver, stranger, secret):
    stranger.sendall(hello(driver, secret=secret))
    assert silence(driver) == BOTH_SILENT
    assert hung_up(stranger)


@pytest.mark.parametrize("rank", [2, -1, None, "0", 0.0, False, [0]], ids=repr)
def test_who_claims_a_wrong_rank_is_hung_up_on(driver, stranger, rank):
    stranger.sendall(hello(driver, rank=rank))
    assert silence(driver) == BOTH_SILENT
    assert hung_up(stranger)


@pytest.mark.parametrize(
    "data",
    [
        framed(b""),
        framed(b"\xc1"),
        framed(wire.encode({})),
        framed(wire.encode({"kind": "stepped"})),
        framed(b"\x81\xa6secret" + b"\x91" * 4000 + b"\xc0"),
        framed(b"\x82\xa4kind\xa5hello\xa6secret" + b"\x91" * 1000 + b"\xc0"),
        framed(b"\x82\xa4kind\xa5hello\xa6secret\xa2\xc3\x28"),
        struct.pack("<I", unix.MOST_GREETING_BYTES + 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=[
        "empty",
        "no msgpack",
        "no kind",
        "no greeting",
        "nested",
        "nested secret",
        "no UTF-8",
        "too large",
        "HTTP",
    ],
)
def test_who_says_anything_but_hello_is_hung_up_on(driver, stranger, data):
    stranger.sendall(data)
    assert silence(driver) == BOTH_SILENT
    assert hung_up(stranger)


def test_nobody_speaks_for_a_rank_that_has_greeted(driver, join, stranger):
    rank = join(0)
    join(1)
    greetings(driver)
    stranger.sendall(hello(driver) + framed(wire.encode({"kind": "loaded"})))
    assert silence(driver, "loaded") == BOTH_SILENT
    assert hung_up(stranger)
    driver.send(0, {"kind": "step"})
    assert rank.receive() == {"kind": "step"}


def test_who_stops_within_a_message_keeps_nobody_from_joining(driver, join, stranger):
    stranger.sendall(hello(driver)[:-1])
    assert silence(driver) == BOTH_SILENT
    join(0), join(1)
    assert set(greetings(driver)) == {0, 1}


@pytest.fixture
def short_wait(monkeypatch) -> None:
    monkeypatch.setattr(unix, "LAST_WORDS_S", 0.2)


@pytest.mark.usefixtures("short_wait")
def test_a_rank_that_announces_more_than_the_limit_is_no_rank_any_more(driver, join):
    ranks = [join(0), join(1)]
    greetings(driver)
    ranks[1]._socket.sendall(struct.pack("<I", wire.MOST_MESSAGE_BYTES + 1))
    with pytest.raises(RankFault) as caught:
        driver.collect("stepped", "step 3", 20, nobody, stop_at_error=True)
    assert caught.value.code == "E-RANK-DIED"
    assert caught.value.message == "step 3: rank 1 has hung up"


@pytest.mark.usefixtures("short_wait")
def test_a_rank_that_hangs_up_is_named_though_its_process_lives(driver, join):
    ranks = [join(0), join(1)]
    greetings(driver)
    ranks[0].close()
    driver.send(0, {"kind": "step"})
    driver.send(0, {"kind": "step"})
    with pytest.raises(RankFault, match=r"step 3: rank 0 has hung up$"):
        driver.collect("stepped", "step 3", 3600, nobody, stop_at_error=True)
    with pytest.raises(RankFault, match=r"step 4: rank 0 has hung up$"):
        driver.collect("stepped", "step 4", 20, nobody, stop_at_error=True)


def test_the_last_words_of_a_rank_count_although_it_has_hung_up(driver, join):
    ranks = [join(0), join(1)]
    greetings(driver)
    for rank in ranks:
        rank.send({"kind": "stepped", "rest": b"x" * 100_000})
        rank.close()
    driver.send(0, {"kind": "step"})
    answers = driver.collect("stepped", "step 3", 20, nobody, stop_at_error=True)
    assert [len(answers[rank]["rest"]) for rank in (0, 1)] == [100_000, 100_000]


def test_sending_does_not_wait_for_a_rank_that_reads_nothing(driver, join):
    """More than any buffer holds: it goes out while the driver waits for the answer."""
    ranks = [join(0), join(1)]
    greetings(driver)
    large = [bytes([number]) * (8 << 20) for number in range(3)]
    for data in large:
        driver.send(0, {"data": data})
    ranks[1].send({"kind": "stepped"})
    with pytest.raises(RankFault, match=r"no answer within 0 s from rank 0$"):
        driver.collect("stepped", "step 3", 0, nobody, stop_at_error=True)

    def read() -> None:
        assert [ranks[0].receive()["data"] for _ in large] == large
        ranks[0].send({"kind": "stepped"})

    with ThreadPoolExecutor(1) as reader:
        done = reader.submit(read)
        ranks[1].send({"kind": "stepped"})
        assert set(driver.collect("stepped", "step 4", 20, nobody, stop_at_error=True)) == {0, 1}
        done.result()


def test_a_rank_hears_what_was_said_before_the_driver_hung_up():
    link = DriverLink(1, Address())
    rank = connect(link.ticket(0))
    greetings(link)
    link.send(0, {"kind": "stop"})
    link.close()
    rank.send({"kind": "stepped"})
    assert rank.receive() == {"kind": "stop"}
    with pytest.raises(DriverGone):
        rank.receive()
    rank.close()


def test_a_link_can_be_closed_twice_and_reaches_nobody_then():
    link = DriverLink(1, Address())
    rank = connect(link.ticket(0))
    greetings(link)
    link.close()
    with pytest.raises(RankFault, match="rank 0 cannot be reached"):
        link.send(0, {"kind": "stop"})
    link.close()
    rank.close()


def test_a_rank_without_a_driver_says_so():
    link = DriverLink(1, Address())
    ticket = link.ticket(0)
    link.close()
    with pytest.raises(EnvironmentFault, match=f"rank 0: no driver at {ticket.endpoint}") as caught:
        connect(ticket)
    assert caught.value.code == "E-NET-DRIVER"


@pytest.mark.timeout(60)
def test_who_connects_and_says_nothing_is_hung_up_on(driver, join, stranger, monkeypatch):
    monkeypatch.setattr(unix, "GREETING_S", 0.3)
    rank = join(0)
    join(1)
    greetings(driver)
    with pytest.raises(RankFault, match="no answer within 1 s"):
        driver.collect("stepped", "step 1", 1, nobody, stop_at_error=True)
    assert hung_up(stranger)
    driver.send(0, {"kind": "step"})
    assert rank.receive() == {"kind": "step"}


@pytest.mark.timeout(60)
def test_many_who_say_nothing_keep_nobody_from_joining(driver, join):
    path = driver.ticket(0).endpoint.removeprefix(unix.SCHEME)
    silent = []
    try:
        for _ in range(4):
            for _ in range(unix.MOST_SILENT):
                silent.append(socket.socket(socket.AF_UNIX))
                silent[-1].connect(path)
            assert silence(driver) == BOTH_SILENT
        assert len(driver._transport._peers) <= unix.MOST_SILENT + 2
        join(0), join(1)
        assert set(greetings(driver)) == {0, 1}
        assert hung_up(silent[0])
    finally:
        for each in silent:
            each.close()
