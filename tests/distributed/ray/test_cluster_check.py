"""`isobit cluster check` on two nodes of a Ray cluster: raylets here, each at its own address.

Linux answers on all of 127.0.0.0/8. The second node runs isobit on another instruction set, which
is a fault that a host can really have.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from isobit.kernels import ops
from isobit.launch.cli.cluster.table import print_table

from ...command import command
from ...support import INT4
from .nodes import HEAD, WORKER, ray_nodes

pytestmark = pytest.mark.long

__all__ = ["command"]

OTHER_ISA = ops.available_isas()[-1]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    nodes = {
        HEAD: {"num_cpus": 2, "include_dashboard": False},
        WORKER: {"num_cpus": 1, "env_vars": {"ISOBIT_CPU_ISA": OTHER_ISA}},
    }
    with ray_nodes(nodes) as made:
        yield made.address


@pytest.fixture(scope="module")
def report(address) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "isobit.launch.cli",
            "cluster",
            "check",
            str(INT4),
            "--ray-address",
            address,
            "--hosts",
            "3",
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@pytest.fixture(scope="module")
def hosts(report) -> list[dict[str, Any]]:
    assert [host["address"] for host in report["hosts"]] == [HEAD, WORKER], "the head first"
    return report["hosts"]


def test_every_host_tells_its_facts(hosts):
    for host in hosts:
        assert "error" not in host
        assert host["versions"] == hosts[0]["versions"]
        assert host["facts"]["memory_bytes"] > 0
        assert "config.json" in {file["name"] for file in host["facts"]["model"]["files"]}
    assert [host["ray"]["CPU"] for host in hosts] == [2, 1]
    assert [host["head"] for host in hosts] == [True, False]


def test_hosts_reach_each_other_and_tell_the_time(hosts):
    head, worker = hosts
    for one, other in ((head, worker), (worker, head)):
        assert one["peers"].keys() == {other["node"]}
        assert one["peers"][other["node"]]["round_trip_ms"] > 0
    # Both read the clock of one machine.
    assert abs(worker["clock"]["offset_ms"]) <= worker["clock"]["error_ms"]
    assert "clock" not in head


def test_the_way_to_the_head_is_an_interface(hosts):
    assert {host["facts"]["route"]["interface"] for host in hosts} == {"lo"}


def test_each_fault_is_found_and_nothing_else(report):
    whats = [finding["what"] for finding in report["findings"] if finding["severity"] == "error"]
    missing, isa = whats
    assert report["verdict"] == "faults"
    assert missing.startswith("2 of 3 hosts are there")
    assert f"{OTHER_ISA}, vnni" in isa
    assert WORKER in isa


def test_people_see_a_table_with_what_differs_marked(hosts, capsys):
    print_table(hosts)
    rows = {line[:15].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert f"≠ {OTHER_ISA}" in rows["CPU kernels"]
    assert "≠" not in rows["Ray"]


def test_a_cluster_that_is_not_there_is_an_error_of_its_own(command):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    done = command("cluster", "check", "--ray-address", f"127.0.0.1:{port}", "--json")
    assert (done.status, done.json()["error"]["code"]) == (2, "E-RAY-CONNECT")


def test_a_model_that_the_driver_lacks_is_an_error_before_anyone_is_asked(command):
    done = command("cluster", "check", "/no/such", "--ray-address", "127.0.0.1:1", "--json")
    assert (done.status, done.json()["error"]["code"]) == (2, "E-MODEL-MISSING")
