"""Between hosts: who has not the keys of a ticket is not heard, who breaks a rule is lost."""

from __future__ import annotations

import dataclasses

import pytest
import zmq

from isobit.errors import RankFault
from isobit.runtime.transport import wire
from isobit.runtime.transport.address import Address
from isobit.runtime.transport.driver import DriverLink
from isobit.runtime.transport.tcp import TcpRank
from isobit.runtime.transport.ticket import RankTicket

from ...links import BOTH_SILENT, greetings, nobody, silence

HOST = "127.0.0.1"


@pytest.fixture
def host() -> str:
    return HOST


class Stranger:
    """A peer that speaks the protocol of TCP, with an identity and messages of its own."""

    def __init__(self, ticket: RankTicket, identity: bytes) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.LINGER, 0)
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


@pytest.mark.parametrize("secret", [None, 7, ["x"], {"a": 1}], ids=str)
def test_a_secret_of_another_type_is_ignored(driver, stranger, secret):
    stranger(b"0", wire.encode({"kind": "hello", "rank": 0, "secret": secret}))
    assert silence(driver) == BOTH_SILENT


@pytest.mark.parametrize(
    ("identity", "rank"),
    [(b"2", 2), (b"-1", -1), (b"1", 0), (b"0", None), (b"0", "0"), (b"0", 0.0), (b"0", False)]
    + [(text, 1) for text in (b"rank", b"01", b" 1", b"\xff", b"1" * 200)],
)
def test_a_peer_with_a_wrong_rank_is_ignored(driver, stranger, identity, rank):
    secret = driver.ticket(0).secret
    stranger(identity, wire.encode({"kind": "hello", "rank": rank, "secret": secret}))
    assert silence(driver) == BOTH_SILENT


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


def test_without_the_keys_of_a_ticket_nothing_gets_through():
    """CURVE ends the handshake: not even a right secret is read."""
    link = DriverLink(1, Address(host=HOST))
    ticket = dataclasses.replace(link.ticket(0), server_key="")
    peer = TcpRank(ticket)
    assert not link._transport._socket.poll(300)
    link.close()
    peer._socket.setsockopt(zmq.LINGER, 0)
    peer.close()


def test_a_rank_hears_nobody_but_the_driver_of_its_ticket(join):
    """Another driver at the same address has not the key that the ticket names."""
    false = DriverLink(2, Address(host=HOST))
    rank = join(0, endpoint=false.ticket(0).endpoint)
    assert not false._transport._socket.poll(300)
    with pytest.raises(RankFault, match="rank 0 cannot be reached"):
        false.send(0, {"kind": "step"})
    assert not rank._socket.poll(0)
    rank._socket.setsockopt(zmq.LINGER, 0)
    false.close()


def test_a_message_beyond_the_limit_is_refused_before_it_is_read(monkeypatch):
    """ZeroMQ knows the size from the header and takes no memory for the rest."""
    monkeypatch.setattr(wire, "MOST_MESSAGE_BYTES", 4096)
    link = DriverLink(1, Address(host=HOST))
    rank = TcpRank(link.ticket(0))
    assert set(greetings(link)) == {0}
    rank._socket.send(b"x" * 5000)
    # Whoever sends such a thing is no rank any more.
    with pytest.raises(RankFault) as caught:
        link.collect("stepped", "step 1", 5, nobody, stop_at_error=True)
    assert caught.value.code == "E-HOST-LOST"
    rank._socket.setsockopt(zmq.LINGER, 0)
    rank.close()
    link.close()


def test_a_stranger_keeps_no_rank_from_joining(driver, join, stranger):
    stranger(b"7", wire.encode({"kind": "hello", "rank": 1, "secret": "guess"}))
    join(0), join(1)
    assert set(greetings(driver)) == {0, 1}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("taken", [b"1", b"0"])
def test_who_takes_the_name_of_a_rank_first_does_not_keep_it_out(driver, join, stranger, taken):
    """Names of connections follow from the secret of the ticket, which the server's key is not."""
    stranger(taken, wire.encode({"kind": "hello", "rank": int(taken), "secret": "guess"}))
    assert silence(driver) == BOTH_SILENT
    join(0), join(1)
    assert set(greetings(driver)) == {0, 1}
