"""Ranks over several nodes of a Ray cluster: raylets of this machine, each at its own address.

Linux answers on all of 127.0.0.0/8, so that nodes here have what hosts have: different addresses,
TCP between them, resources of their own.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from isobit.errors import EnvironmentFault, RankFault
from isobit.launch.cluster.ray.auth import ray_environment
from isobit.launch.cluster.ray.launcher import RayLauncher
from isobit.launch.cluster.ray.nodes import Demand, cluster_nodes
from isobit.launch.cluster.ray.placement import Placement
from isobit.launch.cluster.ray.rank_actor import rank_actor_class
from isobit.launch.cluster.ray.session import ray_session
from isobit.launch.cluster.ray.versions import (
    HostReport,
    check_versions,
    driver_report,
    node_versions,
)
from isobit.runtime.engine.engine import Engine
from isobit.runtime.engine.results import Batch
from isobit.runtime.ranks.launcher import Launcher, LocalLauncher
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.transport.ticket import RankTicket
from isobit.shard.plan.plan import PlanSettings

from ...support import INT4
from .nodes import HEAD, WORKER, ray_nodes

pytestmark = pytest.mark.long

DOOMED = "127.0.1.3"
PROMPT = [5, 9, 14]
NOTHING_LEFT_S = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """Two cores on the head's node, one on the other; tokens are asked for.

    Ray counts GPUs as it is told to: two on the head's node, which nobody touches.
    """
    nodes = {
        HEAD: {"num_cpus": 2, "num_gpus": 2, "include_dashboard": False},
        WORKER: {"num_cpus": 1},
    }
    with ray_nodes(nodes) as made:
        yield made


@pytest.fixture(scope="module")
def session(cluster) -> Iterator[None]:
    with ray_session(cluster.address, 0):
        yield


@pytest.fixture
def taken(session) -> Iterator[None]:
    """Another job holds one core of the driver's node."""
    from ray.util.placement_group import placement_group, remove_placement_group

    del session
    label = {"ray.io/node-id": cluster_nodes()[0].id}
    group = placement_group([{"CPU": 1}], bundle_label_selector=[label])
    assert group.wait(20)
    wait_until_free(2)
    yield
    remove_placement_group(group)
    wait_until_free(3)


IN_SESSION = pytest.mark.usefixtures("session")


def wait_until_free(cores: int) -> None:
    """Until Ray's table, which lags behind, shows that many free cores."""
    deadline = time.monotonic() + NOTHING_LEFT_S
    while sum(node.free_cpus for node in cluster_nodes()) != cores:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def run(degree: int, launcher: Launcher) -> tuple[Batch, list[str]]:
    """The answer, and the host of each rank."""
    settings = EngineSettings(plan=PlanSettings(degree=degree))
    sampling = SamplingSettings(max_tokens=8, ignore_eos=True)
    with Engine(INT4, settings, launcher) as engine:
        hosts = launcher.hosts() if isinstance(launcher, RayLauncher) else []
        return engine.generate([PROMPT], [sampling]), hosts


def bits(batch: Batch) -> tuple:
    return batch.completions[0].tokens, batch.completions[0].logits_digest, batch.hidden_digests


@pytest.fixture(scope="module")
def alone() -> tuple:
    return bits(run(1, LocalLauncher())[0])


def name(address: str) -> str:
    return f"{socket.gethostname()} ({address})"


@IN_SESSION
def test_two_ranks_share_the_drivers_node_when_it_holds_both():
    placement = Placement(Demand(ranks=2), 20)
    assert [node.address for node in placement.nodes] == [HEAD, HEAD]
    placement.release()
    wait_until_free(3)


@pytest.mark.usefixtures("taken")
def test_two_ranks_on_two_nodes_have_the_bits_of_one(alone):
    batch, hosts = run(2, RayLauncher())
    assert hosts == [name(HEAD), name(WORKER)]
    assert bits(batch) == alone


@IN_SESSION
def test_three_ranks_on_uneven_nodes_have_the_bits_of_one(alone):
    batch, hosts = run(3, RayLauncher())
    assert hosts == [name(HEAD), name(HEAD), name(WORKER)]
    assert bits(batch) == alone
    wait_until_free(3)


@IN_SESSION
def test_too_few_cores_are_a_table_of_nodes():
    with pytest.raises(EnvironmentFault) as caught:
        Placement(Demand(ranks=4), 20)
    assert caught.value.code == "E-RAY-RESOURCES"
    lines = caught.value.message.splitlines()
    assert lines[0] == (
        "4 ranks need 4 cores in the Ray cluster, which has 3. "
        "Ask for fewer ranks (-tp 3) or add hosts"
    )
    assert [line.split() for line in lines[2:]] == [
        [*f"{name(HEAD)}, the driver's".split(), "alive", "2", "of", "2", "2"],
        [*name(WORKER).split(), "alive", "1", "of", "1", "1"],
        ["asked", "4,", "present", "3,", "missing", "1"],
    ]


@IN_SESSION
def test_gpus_that_are_not_there_are_counted():
    with pytest.raises(EnvironmentFault) as caught:
        Placement(Demand(ranks=3, gpu=True), 20)
    assert caught.value.code == "E-RAY-RESOURCES"
    lines = caught.value.message.splitlines()
    assert lines[0].startswith("3 ranks on CUDA need 3 GPUs, each with a core, in the Ray cluster")
    assert lines[1].split() == ["node", "state", "GPUs", "free", "cores", "free", "ranks"]
    assert lines[2].endswith("alive  2 of 2     2 of 2      2")
    assert lines[3].endswith("alive  0 of 0     1 of 1      0")
    assert lines[4] == "  asked 3, present 2, missing 1"


@IN_SESSION
def test_every_rank_on_cuda_is_told_the_index_of_its_own_gpu(monkeypatch):
    import ray

    from isobit.launch.cluster.ray import launcher

    class Recorder(rank_actor_class()):
        def run(self, ticket: dict) -> dict:
            return ticket

    monkeypatch.setattr(launcher, "rank_actor_class", lambda: Recorder)
    tickets = [
        RankTicket(endpoint="", rank=rank, degree=2, secret="", device="cuda") for rank in range(2)
    ]
    started = RayLauncher()
    try:
        started.launch(tickets)
        told = ray.get(started._runs, timeout=60)
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    finally:
        started.stop()
    assert sorted(ticket["device"] for ticket in told) == ["cuda:0", "cuda:1"]
    assert [ticket["rank"] for ticket in told] == [0, 1]
    assert sorted(name.rpartition("-e0-r")[2] for name in names) == ["0", "1"]
    wait_until_free(3)
    assert ray.util.list_named_actors(all_namespaces=True) == []


@pytest.mark.usefixtures("taken")
def test_cores_that_other_jobs_hold_are_told_from_missing_ones():
    with pytest.raises(EnvironmentFault) as caught:
        Placement(Demand(ranks=3), 1)
    assert caught.value.code == "E-RAY-RESOURCES"
    assert "within 1 s: other jobs hold it" in caught.value.message
    assert "asked 3, present 3, held by other jobs 1, missing 1" in caught.value.message


@IN_SESSION
def test_every_node_tells_its_versions():
    nodes = cluster_nodes()
    reports = node_versions(nodes, 60)
    assert set(reports) == {node.id for node in nodes}
    first, second = reports.values()
    assert first == second
    check_versions(first, {"other": second})


@IN_SESSION
def test_a_host_with_other_software_is_named_before_ranks_are_made(monkeypatch):
    """The driver is the one that lies here, so both hosts differ from it."""
    from isobit.launch.cluster.ray import launcher

    def lying() -> HostReport:
        report = driver_report()
        return HostReport(hostname=report.hostname, versions={**report.versions, "torch": "1.0"})

    monkeypatch.setattr(launcher, "driver_report", lying)
    with pytest.raises(EnvironmentFault) as caught:
        run(3, RayLauncher())
    assert caught.value.code == "E-RAY-VERSION"
    lines = caught.value.message.splitlines()
    assert lines[0].startswith("2 of 2 hosts have other software than the driver")
    assert [line.partition(": torch ")[0] for line in lines[1:]] == [
        f"  {name(HEAD)}",
        f"  {name(WORKER)}",
    ]
    assert all(line.endswith("the driver has 1.0") for line in lines[1:])
    wait_until_free(3)


def test_a_wrong_token_is_one_error(cluster, capfd):
    with (
        ray_environment({"RAY_AUTH_TOKEN": "wrong"}),
        pytest.raises(EnvironmentFault) as caught,
        ray_session(cluster.address, 0),
    ):
        pass
    assert caught.value.code == "E-RAY-AUTH"
    assert "refuses the token of RAY_AUTH_TOKEN" in caught.value.message
    assert capfd.readouterr() == ("", "")


@IN_SESSION
def test_a_node_that_dies_in_a_run_is_named_and_the_run_can_be_repeated(cluster, alone):
    doomed = cluster.add_node(num_cpus=1, node_ip_address=DOOMED)
    wait_until_free(4)
    settings = EngineSettings(plan=PlanSettings(degree=4))
    sampling = SamplingSettings(max_tokens=400, ignore_eos=True)
    died: list[int] = []

    def kill(_request: int, _token: int) -> None:
        if not died:
            died.append(3)
            cluster.remove_node(doomed, allow_graceful=False)

    with Engine(INT4, settings, RayLauncher()) as engine, pytest.raises(RankFault) as caught:
        engine.generate([PROMPT], [sampling], kill)
    assert caught.value.code == "E-RANK-DIED"
    assert f"rank 3 is lost with its host {name(DOOMED)}" in caught.value.message
    assert not any(f"rank {rank}" in caught.value.message for rank in range(3))
    assert bits(run(2, RayLauncher())[0]) == alone
