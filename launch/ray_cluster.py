"""Ranks as Ray actors: one bundle and one actor per rank, on a private local Ray or a given one.

Ray places and watches ranks. It is not on the path of a step: ranks talk to the driver themselves.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..kernels.errors import EnvironmentFault
from ..runtime.launcher import cores
from ..runtime.link import Address, private_folder
from ..runtime.ticket import RankTicket
from .interrupts import held_interrupts

PLACEMENT_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 5
OBJECT_STORE_BYTES = 80 << 20
LONGEST_RAY_SOCKET = len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


@contextmanager
def ray_session(address: str | None, most_ranks: int) -> Iterator[None]:
    """A Ray to place ranks on: the cluster at `address`, or one that lives as long as the block.

    The private Ray listens on loopback, wants a random token, and leaves no file behind. Raises
    EnvironmentFault E-RAY-CONNECT when Ray cannot be started or reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    else:
        _check_reachable(address)
    import ray
    from ray.exceptions import RayError

    settings: dict[str, Any] = {
        "address": address,
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "namespace": "isobit",
    }
    with ExitStack() as cleanup:
        with held_interrupts():
            if address is None:
                folder = str(private_folder("isobit-ray-", LONGEST_RAY_SOCKET))
                cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
                settings |= {
                    "address": "local",
                    "num_cpus": max(most_ranks, cores()),
                    "include_dashboard": False,
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "_temp_dir": folder,
                    "_node_ip_address": "127.0.0.1",
                }
            cleanup.callback(_shut_down)
            try:
                ray.init(**settings)
            except (OSError, ValueError, RuntimeError, RayError) as error:
                where = "a local Ray" if address is None else f"Ray at {address}"
                raise EnvironmentFault(
                    "E-RAY-CONNECT", f"{where} cannot be used: {str(error).splitlines()[0]}"
                ) from error
        yield


def _check_reachable(address: str) -> None:
    """Ask the port itself: Ray would go on asking for minutes.

    Raises EnvironmentFault E-RAY-CONNECT.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise EnvironmentFault(
            "E-RAY-CONNECT",
            f"Ray at {address} cannot be reached ({error}). Is `ray start --head` running there?",
        ) from error


def _shut_down() -> None:
    import ray

    with held_interrupts():
        ray.shutdown()


class RayLauncher:
    """Places the ranks of one engine on the connected Ray; needs an open ray_session."""

    def __init__(self) -> None:
        self._actors: list[Any] = []
        self._runs: list[Any] = []
        self._group: Any = None
        self._hosts: list[str] = []

    def address(self) -> Address:
        import ray

        hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        return Address() if len(hosts) == 1 else Address(host=ray.util.get_node_ip_address())

    def launch(self, tickets: list[RankTicket]) -> None:
        """Raises EnvironmentFault E-RAY-RESOURCES when the cluster cannot hold the ranks."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = self._check_resources(len(tickets))
        self._group = placement_group([{"CPU": 1}] * len(tickets), strategy=strategy)
        if not self._group.wait(PLACEMENT_TIMEOUT_S):
            raise EnvironmentFault(
                "E-RAY-RESOURCES",
                f"no place for {len(tickets)} ranks within {PLACEMENT_TIMEOUT_S} s: other jobs "
                f"hold the cores.\n{_resource_table(len(tickets))}",
            )
        bundles = self._bundles_by_node()
        actor_class = ray.remote(num_cpus=1, max_restarts=0)(_RankActor)
        for ticket, (bundle, _) in zip(tickets, bundles, strict=True):
            scheduling = PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=bundle
            )
            self._actors.append(actor_class.options(scheduling_strategy=scheduling).remote())
            self._runs.append(self._actors[-1].run.remote(dataclasses.asdict(ticket)))
        self._hosts = [node for _, node in bundles]

    def dead(self) -> dict[int, str]:
        import ray
        from ray.exceptions import RayError

        ended = {}
        for rank, run in enumerate(self._runs):
            if ray.wait([run], timeout=0)[0]:
                try:
                    ray.get(run)
                    ended[rank] = "ended"
                except RayError as error:
                    ended[rank] = f"died ({type(error).__name__})"
        return ended

    def hosts(self) -> list[str]:
        return self._hosts

    def stop(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        if not ray.is_initialized():
            return
        for actor in self._actors:
            ray.kill(actor)
        if self._group is not None:
            remove_placement_group(self._group)
        self._actors, self._runs, self._group = [], [], None

    def _check_resources(self, ranks: int) -> str:
        """Return the placement strategy; ranks share one node when one is large enough."""
        import ray

        cpus = [n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]]
        if sum(cpus) < ranks:
            raise EnvironmentFault(
                "E-RAY-RESOURCES",
                f"{ranks} ranks need {ranks} CPU cores in the Ray cluster.\n"
                + _resource_table(ranks),
            )
        return "STRICT_PACK" if max(cpus) >= ranks else "PACK"

    def _bundles_by_node(self) -> list[tuple[int, str]]:
        """Bundles ordered by node, the driver's node first (Ray keeps no order of its own)."""
        import ray
        from ray.util.placement_group import placement_group_table

        here = ray.get_runtime_context().get_node_id()
        placed: dict[int, str] = placement_group_table(self._group)["bundles_to_node_id"]
        return sorted(placed.items(), key=lambda item: (item[1] != here, item[1], item[0]))


class _RankActor:
    def run(self, ticket: dict[str, Any]) -> None:
        from ..runtime.rank_process import run_rank

        run_rank(RankTicket(**ticket))


def _resource_table(asked: int) -> str:
    import ray

    lines = [f"  asked    {asked} x 1 CPU"]
    for node in ray.nodes():
        state = "alive" if node["Alive"] else "dead"
        lines.append(
            f"  present  {node['NodeManagerAddress']}: "
            f"{node['Resources'].get('CPU', 0):.0f} CPU ({state})"
        )
    present = sum(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"])
    lines.append(f"  missing  {max(0, asked - present):.0f} CPU")
    return "\n".join(lines)
