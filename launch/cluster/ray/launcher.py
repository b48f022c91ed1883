"""Ranks of one engine on the connected Ray: placed, compared, started, watched, ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
from typing import Any

from isobit.errors import EnvironmentFault

from ....runtime.transport.address import Address
from ....runtime.transport.ticket import RankTicket
from ...endings import ends_within
from .nodes import Demand, Node, cluster_nodes
from .placement import Placement
from .rank_actor import device_index, rank_actor_class
from .reach import refuses, silence
from .session import head_is_gone
from .versions import HostReport, check_versions, driver_report

PLACE_S = 20.0
ANSWER_S = 60.0
"""Ray and Python may come from a cold or a shared disk."""
LOOK_S = 2.0
STOP_S = 10.0


class RayLauncher:
    """Places the ranks of one engine on the connected Ray; needs an open ray_session."""

    def __init__(self) -> None:
        self._engine = f"isobit-{os.getpid()}-{secrets.token_hex(3)}"
        self._epoch = -1
        self._actors: list[Any] = []
        self._runs: list[Any] = []
        self._placement: Placement | None = None

    def address(self) -> Address:
        import ray

        hosts = {node.address for node in cluster_nodes() if node.state == "alive"}
        return Address() if len(hosts) == 1 else Address(host=ray.util.get_node_ip_address())

    def launch(self, tickets: list[RankTicket]) -> None:
        """Start one actor for each ticket; tickets for "cuda" get the index of a GPU.

        Raises EnvironmentFault E-RAY-RESOURCES when the cluster cannot hold the ranks,
        E-RAY-VERSION when a host has other software, E-RAY-START when a host starts no rank.
        """
        self._epoch += 1
        gpu = tickets[0].device == "cuda"
        self._placement = Placement(Demand(ranks=len(tickets), gpu=gpu), PLACE_S)
        self._create_actors(gpu)
        told = self._descriptions()
        check_versions(
            driver_report(),
            {
                str(node): HostReport(**answer["report"])
                for node, answer in zip(self._nodes, told, strict=True)
            },
        )
        for actor, ticket, answer in zip(self._actors, tickets, told, strict=True):
            if gpu:
                index = device_index(answer["gpu_ids"][0], answer["visible"])
                ticket = dataclasses.replace(ticket, device=f"cuda:{index}")
            self._runs.append(actor.run.remote(dataclasses.asdict(ticket)))

    def dead(self) -> dict[int, str]:
        """Ranks that have ended and how, with their host; all ranks of a host whose Ray ended."""
        import ray
        from ray.exceptions import RayError

        if self._runs and head_is_gone():
            # Any other question would wait for it.
            return {
                rank: f"is lost on {node}: the head of Ray has ended"
                for rank, node in enumerate(self._nodes)
            }
        ended: dict[int, str] = {}
        for rank, run in enumerate(self._runs):
            if ray.wait([run], timeout=0)[0]:
                try:
                    ray.get(run)
                    ended[rank] = f"on {self._nodes[rank]} ended"
                except RayError as error:
                    ended[rank] = f"on {self._nodes[rank]} died ({type(error).__name__})"
        # Ray itself says so seconds later, and of one rank after the other.
        gone = {node.id for node in set(self._nodes) if refuses(node.door)} if self._runs else ()
        for rank, node in enumerate(self._nodes if gone else ()):
            if node.id in gone:
                ended[rank] = f"is lost with its host {node}: Ray has ended there"
        return ended

    def hosts(self) -> list[str]:
        """The host of each rank, as messages name it. Ranks of one host are neighbours."""
        return [str(node) for node in self._nodes]

    def stop(self) -> None:
        import ray
        from ray.exceptions import RayError

        if ray.is_initialized() and not head_is_gone():
            # It may end while it is asked, as by a signal to the whole group.
            with contextlib.suppress(RayError):
                ends_within(STOP_S, self._kill)
        self._actors, self._runs, self._placement = [], [], None

    def _kill(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if self._placement is not None:
            self._placement.release()

    @property
    def _nodes(self) -> list[Node]:
        assert self._placement is not None, "launch comes first"
        return self._placement.nodes

    def _create_actors(self, gpu: bool) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert self._placement is not None
        actor_class = ray.remote(num_cpus=1, num_gpus=1 if gpu else 0, max_restarts=0)(
            rank_actor_class()
        )
        for rank in range(len(self._nodes)):
            scheduling = PlacementGroupSchedulingStrategy(
                placement_group=self._placement.group, placement_group_bundle_index=rank
            )
            name = f"{self._engine}-e{self._epoch}-r{rank}"
            actor = actor_class.options(name=name, scheduling_strategy=scheduling)
            self._actors.append(actor.remote())

    def _descriptions(self) -> list[dict[str, Any]]:
        """What each actor says of its host; raises EnvironmentFault E-RAY-START naming hosts."""
        import ray
        from ray.exceptions import RayError

        asked = [actor.describe.remote() for actor in self._actors]
        deadline = time.monotonic() + ANSWER_S
        waiting = asked
        while waiting and time.monotonic() < deadline and not self._silent():
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_S)
        failed = self._silent() if waiting else {}
        told: list[dict[str, Any]] = []
        for node, answer in zip(self._nodes, asked, strict=True):
            try:
                told.append(ray.get(answer, timeout=0))
            except TimeoutError:
                failed.setdefault(str(node), f"no process within {ANSWER_S:.0f} s")
            except RayError as error:
                reason = str(error).strip().splitlines()[-1].strip()
                failed.setdefault(str(node), f"{type(error).__name__}: {reason}")
        if failed:
            raise EnvironmentFault(
                "E-RAY-START",
                "no rank can be started on these hosts (Ray's own logs lie there in "
                "/tmp/ray/session_latest/logs)\n"
                + "\n".join(f"  {host}: {reason}" for host, reason in failed.items()),
            )
        return told

    def _silent(self) -> dict[str, str]:
        """The hosts of ranks that open no connection, and why."""
        asked = {str(node): silence(node.door) for node in set(self._nodes)}
        return {host: reason for host, reason in asked.items() if reason is not None}
