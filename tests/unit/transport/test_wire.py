"""Messages: what goes in comes out, and bytes that are no message are refused."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.runtime.transport import wire

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(message=st.dictionaries(st.text(max_size=6), VALUES, max_size=5))
def test_round_trip(message):
    assert wire.decode(wire.encode(message)) == message


def test_paths_that_are_no_utf8_travel():
    message = {"folder": "/models/m\udcff"}
    assert wire.decode(wire.encode(message)) == message


@given(data=st.binary(max_size=40))
def test_any_bytes_are_a_map_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        assert isinstance(wire.decode(data), dict)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb({"a": 1}) + b"\x00",
        msgpack.packb({"a": [1, 2, 3]})[:-1],
        b"\x91" * 5000,
        b"\x81" * 5000,
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\xa1\xff\x01",
        msgpack.packb({1: 2}),
        msgpack.packb([{"a": 1}]),
        msgpack.packb("hello"),
        msgpack.packb(None),
    ],
    ids=lambda data: f"{len(data)}:{data[:6].hex()}",
)
def test_damaged_or_foreign_bytes_are_refused(data):
    with pytest.raises(ValueError):
        wire.decode(data)


def test_a_message_beyond_the_limit_is_refused_unread(monkeypatch):
    data = wire.encode({"a": b"0123456789"})
    monkeypatch.setattr(wire, "MOST_MESSAGE_BYTES", len(data) - 1)
    with pytest.raises(ValueError, match=f"{len(data)} bytes"):
        wire.decode(data)
    monkeypatch.setattr(wire, "MOST_MESSAGE_BYTES", len(data))
    assert wire.decode(data) == {"a": b"0123456789"}


def test_python_objects_cannot_ride(tmp_path):
    with pytest.raises(TypeError):
        wire.encode({"path": tmp_path})
