"""Which node every rank goes to, and what people are told about nodes, versions and GPUs."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.errors import EnvironmentFault
from isobit.launch.cluster.ray.nodes import Demand, Node, resource_table
from isobit.launch.cluster.ray.placement import choose_nodes
from isobit.launch.cluster.ray.rank_actor import device_index, rank_actor_class
from isobit.launch.cluster.ray.reach import refuses, silence
from isobit.launch.cluster.ray.versions import HostReport, check_versions, driver_report, reporter


def node(name: str, free: float, **fields) -> Node:
    """A node with as many free cores as it has, unless told otherwise."""
    given = {"address": f"10.0.0.{ord(name) - 96}", "cpus": free, "free_cpus": free}
    return Node(
        **{  # type: ignore[arg-type]
            "id": name,
            "hostname": f"box-{name}",
            "port": 1,
            "state": "alive",
            "driver": False,
            **given,
            **fields,
        }
    )


def ids(nodes: list[Node], ranks: int, gpu: bool = False) -> str | None:
    chosen = choose_nodes(nodes, Demand(ranks=ranks, gpu=gpu))
    return None if chosen is None else "".join(each.id for each in chosen)


def test_one_node_is_enough_and_the_drivers_is_preferred():
    assert ids([node("a", 4), node("b", 4, driver=True)], 2) == "bb"


def test_another_node_holds_all_ranks_when_the_drivers_cannot():
    assert ids([node("a", 1, driver=True), node("b", 2)], 2) == "bb"


def test_uneven_boxes_keep_neighbours_together_and_start_at_the_driver():
    assert ids([node("a", 2), node("b", 1, driver=True)], 3) == "baa"
    assert ids([node("a", 2, driver=True), node("b", 1)], 3) == "aab"


def test_ranks_are_spread_evenly_where_there_is_room():
    assert ids([node("a", 3, driver=True), node("b", 3)], 4) == "aabb"


def test_the_driver_does_not_cost_another_node():
    assert ids([node("a", 1, driver=True), node("b", 4), node("c", 4)], 8) == "bbbbcccc"


def test_a_node_that_is_dead_or_silent_gets_no_rank():
    away = [node("a", 8, state="dead"), node("b", 8, state="silent")]
    assert ids([*away, node("c", 1)], 1) == "c"
    assert ids([*away, node("c", 1)], 2) is None


def test_gpus_count_when_ranks_need_them_and_each_needs_a_core():
    nodes = [
        node("a", 16, gpus=2, free_gpus=2),
        node("b", 1, gpus=2, free_gpus=2),
        node("c", 64),
    ]
    assert ids(nodes, 3, gpu=True) == "aab"
    assert ids(nodes, 4, gpu=True) is None


NODES = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6).map(
    lambda rooms: [
        node(chr(97 + i), room, driver=i == 0 and here) for i, (room, here) in enumerate(rooms)
    ]
)


@given(nodes=NODES, ranks=st.integers(1, 12))
def test_every_choice_fits_on_as_few_nodes_as_possible_with_neighbours_together(nodes, ranks):
    chosen = choose_nodes(nodes, Demand(ranks=ranks))
    rooms = sorted((int(each.free_cpus) for each in nodes), reverse=True)
    if sum(rooms) < ranks:
        assert chosen is None
        return
    assert chosen is not None and len(chosen) == ranks
    runs = [(each, len(list(run))) for each, run in groupby(chosen)]
    assert len({each.id for each, _ in runs}) == len(runs)
    assert all(count <= each.free_cpus for each, count in runs)
    assert len(runs) == next(n for n in range(1, 7) if sum(rooms[:n]) >= ranks)
    assert not any(each.driver for each, _ in runs[1:])


def test_the_table_shows_what_was_asked_and_what_every_node_has():
    nodes = [
        node("a", 16, gpus=2, free_gpus=2, driver=True),
        node("b", 4, gpus=2, free_gpus=1, free_cpus=3),
        node("c", 8, gpus=4, free_gpus=4, state="dead"),
    ]
    assert resource_table(nodes, Demand(ranks=6, gpu=True)).splitlines() == [
        "  node                            state  GPUs free  cores free  ranks",
        "  box-a (10.0.0.1), the driver's  alive  2 of 2     16 of 16    2",
        "  box-b (10.0.0.2)                alive  1 of 2     3 of 4      1",
        "  box-c (10.0.0.3)                dead   -          -           -",
        "  asked 6, present 4, held by other jobs 1, missing 3",
    ]


def report(**changed: str) -> HostReport:
    same = {"python": "3.11.7", "isobit": "0.1.0", "ray": "2.60.0", "torch": "2.13.0"}
    return HostReport(hostname="h", versions={**same, "isobit source": "abc", **changed})


def test_every_difference_of_every_host_is_listed():
    hosts = {
        "box-a (10.0.0.1)": report(),
        "box-b (10.0.0.2)": report(torch="2.8.0", python="3.12.1"),
        "box-c (10.0.0.3)": report(**{"isobit": "0.0.9", "isobit source": "def"}),
        "box-d (10.0.0.4)": report(**{"isobit source": "def"}),
    }
    with pytest.raises(EnvironmentFault) as caught:
        check_versions(report(), hosts)
    assert caught.value.code == "E-RAY-VERSION"
    assert caught.value.message.splitlines() == [
        "3 of 4 hosts have other software than the driver; ranks would disagree. "
        "Install the same there",
        "  box-b (10.0.0.2): python 3.12.1; the driver has 3.11.7",
        "  box-b (10.0.0.2): torch 2.8.0; the driver has 2.13.0",
        "  box-c (10.0.0.3): isobit 0.0.9; the driver has 0.1.0",
        "  box-d (10.0.0.4): isobit source def; the driver has abc",
    ]


def test_equal_hosts_pass():
    check_versions(driver_report(), {"this": driver_report()})


ELSEWHERE = """
import json, sys
sys.modules["isobit"] = None
from ray import cloudpickle
report, _actor = cloudpickle.loads(bytes.fromhex(sys.stdin.read()))
print(json.dumps(report()["versions"]))
"""


def test_a_host_that_cannot_import_isobit_still_reports():
    """Ray ships functions this way; one that refers to isobit would fail before it could say so."""
    from ray import cloudpickle

    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=cloudpickle.dumps((reporter(), rank_actor_class())).hex(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    ours, theirs = driver_report().versions, json.loads(done.stdout)
    assert theirs["isobit source"] == "cannot be imported"
    assert {**theirs, "isobit source": ""} == {**ours, "isobit source": ""}


@pytest.mark.parametrize(
    ("gpu", "visible", "index"),
    [("0", None, 0), ("3", None, 3), ("3", "2,3", 1), ("GPU-b", "GPU-a,GPU-b", 1)],
)
def test_a_gpu_has_the_index_that_torch_gives_it(gpu, visible, index):
    assert device_index(gpu, visible) == index


def test_a_listener_a_closed_port_and_a_name_that_nobody_has():
    with socket.create_server(("127.0.0.1", 0)) as server:
        door = ("127.0.0.1", server.getsockname()[1])
        assert silence(door) is None and not refuses(door)
    assert silence(door) == "connection refused" and refuses(door)
    assert silence(("nobody.invalid", 1)) is not None and not refuses(("nobody.invalid", 1))
