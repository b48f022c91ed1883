"""Frames: however a stream is cut, the messages come out whole, and no more than allowed."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.runtime.transport.frames import BrokenStream, FrameReader, framed


def taken(reader: FrameReader) -> list[bytes]:
    found = []
    while (data := reader.take()) is not None:
        found.append(data)
    return found


@given(
    messages=st.lists(st.binary(max_size=300), max_size=6),
    cuts=st.lists(st.integers(1, 400), max_size=12),
)
def test_a_stream_cut_anywhere_gives_the_messages(messages, cuts):
    stream = b"".join(map(framed, messages))
    found = []
    near, far = socket.socketpair()
    with near, far:
        reader = FrameReader(far, 300)
        while stream:
            size = cuts.pop() if cuts else len(stream)
            near.sendall(stream[:size])
            stream = stream[size:]
            reader.read()
            found += taken(reader)
    assert found == messages


def test_a_message_larger_than_one_reading_is_put_together():
    data = bytes(range(256)) * 1000
    near, far = socket.socketpair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(data))
        near.sendall(framed(data) + framed(b"x"))
        reader = FrameReader(far, len(data))
        found: list[bytes] = []
        while len(found) < 2:
            reader.read()
            found += taken(reader)
    assert found == [data, b"x"]


@pytest.mark.parametrize(("size", "allowed"), [(10, True), (11, False), (0xFFFFFFFF, False)])
def test_a_size_is_checked_before_anything_of_its_message_has_come(size, allowed):
    near, far = socket.socketpair()
    with near, far:
        near.sendall(size.to_bytes(4, "little"))
        reader = FrameReader(far, 10)
        reader.read()
        if allowed:
            assert reader.take() is None
        else:
            with pytest.raises(BrokenStream, match=f"a message of {size} bytes, more than 10"):
                reader.take()


def test_a_stream_that_ends_is_broken():
    near, far = socket.socketpair()
    with far:
        near.sendall(framed(b"last"))
        near.close()
        reader = FrameReader(far, 10)
        reader.read()
        assert taken(reader) == [b"last"]
        with pytest.raises(BrokenStream, match="closed by the other end"):
            reader.read()


def test_nothing_to_read_is_no_end():
    near, far = socket.socketpair()
    with near, far:
        far.setblocking(False)
        reader = FrameReader(far, 10)
        reader.read()
        assert reader.take() is None
