"""The ways between hosts: interface and speed of a route, TCP, and the clock at the other end."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import closing

import pytest

from isobit.launch.cluster.check import network
from isobit.launch.cluster.check.greeting import Door, greet, greet_all

HERE = "127.0.0.1"


def test_the_route_to_oneself():
    found = network.route(HERE)
    assert (found["address"], found["interface"]) == (HERE, "lo")


@pytest.mark.parametrize(("text", "speed"), [("10000\n", 10000), ("-1\n", None), ("", None)])
def test_the_speed_that_the_kernel_knows(monkeypatch, tmp_path, text, speed):
    (tmp_path / "eth0").mkdir()
    (tmp_path / "eth0" / "speed").write_text(text)
    monkeypatch.setattr(network, "INTERFACES", tmp_path)
    assert network.speed_of("eth0") == speed
    assert network.speed_of("eth1") is None


def test_the_time_at_a_door_of_this_host_is_ours():
    with closing(Door(HERE)) as door:
        seen = greet(HERE, door.port)
    assert abs(seen["offset_ms"]) <= seen["round_trip_ms"] / 2


@pytest.mark.parametrize("ahead_s", [5, -5])
def test_a_clock_at_the_other_end_that_is_off(ahead_s):
    listener = socket.create_server((HERE, 0))

    def answer() -> None:
        visitor, _ = listener.accept()
        with visitor:
            while visitor.recv(1):
                visitor.sendall(struct.pack("!q", time.time_ns() + ahead_s * 10**9))

    threading.Thread(target=answer, daemon=True).start()
    with listener:
        seen = greet(HERE, listener.getsockname()[1])
    error = abs(seen["offset_ms"] + 1000 * ahead_s)
    assert error <= seen["round_trip_ms"] / 2


def test_a_closed_door_and_an_open_one_are_told_apart():
    shut = Door(HERE)
    shut.close()
    with closing(Door(HERE)) as door:
        seen = greet_all([("open", HERE, door.port), ("shut", HERE, shut.port)])
    assert seen["shut"] == {"error": "connection refused"}
    assert "error" not in seen["open"]


def test_a_host_that_hangs_up_is_no_clock():
    listener = socket.create_server((HERE, 0))

    def hang_up() -> None:
        visitor, _ = listener.accept()
        visitor.recv(1)
        visitor.close()

    threading.Thread(target=hang_up, daemon=True).start()
    with listener:
        assert "error" in greet(HERE, listener.getsockname()[1])
