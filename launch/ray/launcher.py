"""Ranks of one engine on the connected Ray: placed, compared, started, watched, ended."""

from __future__ import annotations

import dataclasses
import os
import secrets
from typing import Any

from ...kernels.errors import EnvironmentFault
from ...runtime.link import Address
from ...runtime.ticket import RankTicket
from .nodes import Demand, Node, cluster_nodes
from .placement import Placement
from .rank_actor import ENVIRONMENT, device_index, rank_actor_class
from .versions import HostReport, check_versions, reporter
from .watch import HostWatch

PLACE_S = 12.0
ANSWER_S = 15.0
"""Together less than the 30 s within which a start fails clearly."""


class RayLauncher:
    """Places the ranks of one engine on the connected Ray; needs an open ray_session."""

    def __init__(self) -> None:
        self._engine = f"isobit-{os.getpid()}-{secrets.token_hex(3)}"
        self._epoch = -1
        self._actors: list[Any] = []
        self._runs: list[Any] = []
        self._placement: Placement | None = None
        self._watch: HostWatch | None = None

    def address(self) -> Address:
        import ray

        hosts = {node.address for node in cluster_nodes() if node.state == "alive"}
        return Address() if len(hosts) == 1 else Address(host=ray.util.get_node_ip_address())

    def launch(self, tickets: list[RankTicket]) -> None:
        """Start one actor for each ticket; a ticket for "cuda" gets the index of its GPU.

        Raises EnvironmentFault E-RAY-RESOURCES when the cluster cannot hold the ranks,
        E-RAY-VERSION when a host has other software, E-RAY-START when a host does not answer.
        """
        self._epoch += 1
        gpu = tickets[0].device == "cuda"
        self._placement = Placement(Demand(ranks=len(tickets), gpu=gpu), PLACE_S)
        self._create_actors(gpu)
        told = self._described()
        for rank, (actor, ticket) in enumerate(zip(self._actors, tickets, strict=True)):
            if gpu:
                index = device_index(told[rank]["gpu_ids"][0], told[rank]["visible"])
                ticket = dataclasses.replace(ticket, device=f"cuda:{index}")
            self._runs.append(actor.run.remote(dataclasses.asdict(ticket)))
        self._watch = HostWatch({node.id: (node.address, node.port) for node in self._nodes})

    def dead(self) -> dict[int, str]:
        """Ranks that have ended and how, with their host; all ranks of a host that is lost."""
        import ray
        from ray.exceptions import RayError

        if self._watch is None:
            return {}
        ended: dict[int, str] = {}
        for rank, run in enumerate(self._runs):
            if ray.wait([run], timeout=0)[0]:
                try:
                    ray.get(run)
                    ended[rank] = f"on {self._nodes[rank]} ended"
                except RayError as error:
                    ended[rank] = f"on {self._nodes[rank]} died ({type(error).__name__})"
                    self._watch.ask(self._nodes[rank].id)
        lost = self._watch.lost()
        for rank, node in enumerate(self._nodes):
            if node.id in lost:
                ended[rank] = (
                    f"is lost with its host {node}: no Ray answers there ({lost[node.id]})"
                )
        return ended

    def hosts(self) -> list[str]:
        """The host of each rank, as messages name it."""
        return [str(node) for node in self._nodes]

    def stop(self) -> None:
        import ray

        if self._watch is not None:
            self._watch.close()
        if ray.is_initialized():
            for actor in self._actors:
                ray.kill(actor)
            if self._placement is not None:
                self._placement.release()
        self._actors, self._runs, self._placement, self._watch = [], [], None, None

    @property
    def _nodes(self) -> list[Node]:
        assert self._placement is not None, "launch comes first"
        return self._placement.nodes

    def _create_actors(self, gpu: bool) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert self._placement is not None
        actor_class = ray.remote(
            num_cpus=1,
            num_gpus=1 if gpu else 0,
            max_restarts=0,
            runtime_env={"env_vars": ENVIRONMENT},
        )(rank_actor_class())
        for rank in range(len(self._nodes)):
            scheduling = PlacementGroupSchedulingStrategy(
                placement_group=self._placement.group, placement_group_bundle_index=rank
            )
            name = f"{self._engine}-e{self._epoch}-r{rank}"
            actor = actor_class.options(name=name, scheduling_strategy=scheduling)
            self._actors.append(actor.remote())

    def _described(self) -> list[dict[str, Any]]:
        """What each actor says of its host, when all of them have the driver's software."""
        import ray
        from ray.exceptions import RayError

        asked = [actor.describe.remote() for actor in self._actors]
        ray.wait(asked, num_returns=len(asked), timeout=ANSWER_S)
        told: list[dict[str, Any]] = []
        silent: dict[str, str] = {}
        for node, answer in zip(self._nodes, asked, strict=True):
            try:
                told.append(ray.get(answer, timeout=0))
            except TimeoutError:
                silent[str(node)] = f"no answer within {ANSWER_S:.0f} s"
            except RayError as error:
                silent[str(node)] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        if silent:
            raise EnvironmentFault(
                "E-RAY-START",
                f"{len(silent)} hosts start no rank; `ray logs` says more\n"
                + "\n".join(f"  {host}: {reason}" for host, reason in silent.items()),
            )
        hosts = {
            str(node): HostReport(**answer["report"])
            for node, answer in zip(self._nodes, told, strict=True)
        }
        check_versions(HostReport(**reporter()()), hosts)
        return told
