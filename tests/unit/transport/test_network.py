"""Which interface leads to the driver, against what the kernel says; closed ways are named."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from isobit.errors import EnvironmentFault
from isobit.runtime.transport import interfaces, reachability

SIOCGIFADDR = 0x8915


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch):
    """Neither variable is set, and what a test sets is forgotten."""
    for name in (interfaces.GLOO, interfaces.NCCL):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.skipif(sys.platform != "linux", reason="the ioctl is Linux's")
def test_interfaces_are_those_of_the_kernel():
    found = interfaces.ipv4_interfaces()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                assert name not in dict(found)
                continue
            assert (name, socket.inet_ntoa(answer[20:24])) in found


def test_the_interface_is_that_of_the_route():
    route = interfaces.use_route("127.0.0.1")
    loopback = next(
        name for name, address in interfaces.ipv4_interfaces() if address == "127.0.0.1"
    )
    assert (route.interface, route.address) == (loopback, "127.0.0.1")
    assert route.chosen_by == "the route to 127.0.0.1"
    assert os.environ[interfaces.GLOO] == os.environ[interfaces.NCCL] == loopback


def test_what_the_user_named_is_kept(monkeypatch):
    loopback = interfaces.use_route("127.0.0.1").interface
    monkeypatch.setenv(interfaces.GLOO, f"{loopback},eth7")
    monkeypatch.setenv(interfaces.NCCL, "=eth7")
    route = interfaces.use_route("127.0.0.1")
    assert (route.interface, route.chosen_by) == (loopback, interfaces.GLOO)
    assert os.environ[interfaces.GLOO] == f"{loopback},eth7"
    assert os.environ[interfaces.NCCL] == "=eth7"


def test_an_interface_that_is_not_there_is_named_with_those_that_are(monkeypatch):
    monkeypatch.setenv(interfaces.GLOO, "eth77")
    with pytest.raises(EnvironmentFault, match=r"eth77: .* only .*\(127\.0\.0\.1\)") as caught:
        interfaces.use_route("127.0.0.1")
    assert caught.value.code == "E-NET-INTERFACE"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_driver_that_cannot_be_reached_is_named_with_address_and_port():
    port = closed_port()
    with pytest.raises(EnvironmentFault, match=f"127.0.0.1, port {port}: ") as caught:
        interfaces.check_reachable("127.0.0.1", port)
    assert caught.value.code == "E-NET-DRIVER"


class Doors:
    """A store in which some hosts' doors are not where they say."""

    def __init__(self, changed: dict[int, dict[int, Any]]) -> None:
        self._store, self._changed = dist.HashStore(), changed

    def set(self, key: str, value: str) -> None:
        rank = int(key.rpartition("/")[2])
        if "door" in key and rank in self._changed:
            door = json.loads(value)
            for field, other in self._changed[rank].items():
                door[field] = other
            value = json.dumps(door)
        self._store.set(key, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def check_all(store: Any, hosts: list[str], address: str = "127.0.0.1") -> list[str]:
    """What each rank says of the routes between hosts."""

    def check(rank: int) -> str:
        try:
            reachability.check_routes(store, rank, hosts, address)
        except EnvironmentFault as fault:
            assert fault.code == "E-NET-ROUTE"
            return fault.message
        return ""

    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(check, range(len(hosts))))


def test_open_ways_are_no_fault():
    assert check_all(Doors({}), ["a", "a", "b", "c"]) == [""] * 4


@pytest.mark.timeout(100)
def test_closed_ways_are_named_on_every_rank_with_address_and_port():
    port = closed_port()
    told = check_all(Doors({3: {1: port}}), ["a", "a", "b", "c"])
    assert len(set(told)) == 1
    assert "2 of 6 ways between 3 hosts are closed" in told[0]
    for host in "ab":
        assert f"{host} to c, from 127.0.0.1 to 127.0.0.1:{port}: connection refused" in told[0]
    assert "open TCP between these hosts" in told[0]


def test_a_way_that_swallows_everything_is_given_up(monkeypatch):
    """A listener that never accepts, with its queue full, answers nothing."""
    monkeypatch.setattr(reachability, "TRY_S", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        port = deaf.getsockname()[1]
        told = check_all(Doors({1: {1: port}}), ["a", "b"])
    assert f"a to b, from 127.0.0.1 to 127.0.0.1:{port}: timed out" in told[1]


def test_another_machine_with_the_same_address_is_not_taken_for_the_host():
    told = check_all(Doors({1: {2: "f" * 32}}), ["a", "b"])
    assert "a to b, from 127.0.0.1 to 127.0.0.1:" in told[0]
    assert "another machine has this address" in told[0]


def test_an_address_that_cannot_be_listened_at_is_named():
    told = check_all(Doors({}), ["a", "b"], address="192.0.2.7")
    assert "a cannot listen at 192.0.2.7" in told[0] and "b cannot listen" in told[0]


def test_ranks_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr(reachability, "ALL_HERE_S", 0.2)
    with pytest.raises(Exception, match="rank 1, rank 2: not here within") as caught:
        reachability.meet(dist.HashStore(), 0, 3)
    assert caught.value.code == "E-RANK-TIMEOUT"  # type: ignore[attr-defined]
