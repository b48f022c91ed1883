"""Which node every rank goes to, and the Ray placement group that holds its resources."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from isobit.errors import EnvironmentFault

from .nodes import Demand, Node, cluster_nodes, resource_table

NODE_LABEL = "ray.io/node-id"
LOOK_S = 0.5


def choose_nodes(nodes: Sequence[Node], demand: Demand) -> list[Node] | None:
    """The node of each rank in the order of ranks, or None when there is too little room.

    As few nodes as possible, the driver's among them where that costs no further node, and first;
    then by room. A node's ranks follow each other, and differ by one in number where there is room.
    """
    roomy = sorted(
        (node for node in nodes if node.room(demand)),
        key=lambda node: (-node.room(demand), not node.driver, node.address, node.id),
    )
    chosen: list[Node] = []
    while sum(node.room(demand) for node in chosen) < demand.ranks:
        if len(chosen) == len(roomy):
            return None
        chosen.append(roomy[len(chosen)])
    driver = next((node for node in roomy if node.driver), None)
    if driver is not None:
        others = [node for node in chosen if node is not driver][: len(chosen) - 1]
        if sum(node.room(demand) for node in (driver, *others)) >= demand.ranks:
            chosen = [driver, *others]
    counts = [0] * len(chosen)
    while sum(counts) < demand.ranks:
        open_places = [i for i, node in enumerate(chosen) if counts[i] < node.room(demand)]
        counts[min(open_places, key=lambda place: counts[place])] += 1
    return [node for node, count in zip(chosen, counts, strict=True) for _ in range(count)]


class Placement:
    """Resources set aside for the ranks of one engine, until `release`."""

    def __init__(self, demand: Demand, timeout_s: float) -> None:
        """Wait until every rank has its place.

        Raises EnvironmentFault E-RAY-RESOURCES at once when the cluster is too small, and after
        `timeout_s` when other jobs hold what is missing.
        """
        self.group: Any = None
        self.nodes: list[Node] = []
        deadline = time.monotonic() + timeout_s
        while True:
            nodes = cluster_nodes()
            if sum(node.holds(demand) for node in nodes) < demand.ranks:
                raise _too_small(nodes, demand)
            self.nodes = choose_nodes(nodes, demand) or []
            if self.nodes and self._reserve(deadline - time.monotonic(), demand):
                return
            if time.monotonic() > deadline:
                raise EnvironmentFault(
                    "E-RAY-RESOURCES",
                    f"no place for {demand} within {timeout_s:.0f} s: other jobs hold it. Wait for "
                    "them, or ask for fewer ranks with -tp\n" + resource_table(nodes, demand),
                )
            time.sleep(LOOK_S)

    def _reserve(self, timeout_s: float, demand: Demand) -> bool:
        """Hold one bundle on the node of every rank; False when another job was faster."""
        from ray.util.placement_group import placement_group

        one = len({node.id for node in self.nodes}) == 1
        self.group = placement_group(
            [demand.bundle for _ in self.nodes],
            strategy="STRICT_PACK" if one else "PACK",
            bundle_label_selector=[{NODE_LABEL: node.id} for node in self.nodes],
        )
        if self.group.wait(max(0.0, timeout_s)):
            return True
        self.release()
        return False

    def release(self) -> None:
        """Give the resources back. Safe to call twice."""
        from ray.util.placement_group import remove_placement_group

        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None


def _too_small(nodes: Sequence[Node], demand: Demand) -> EnvironmentFault:
    present = sum(node.holds(demand) for node in nodes)
    unit = "GPUs, each with a core," if demand.gpu else "cores"
    away = [node for node in nodes if node.state != "alive"]
    remedy = f"Ask for fewer ranks (-tp {present}) or add hosts" if present else "Add hosts"
    if away:
        names = ", ".join(map(str, away))
        remedy = f"Bring back {names} (`ray status` and its /tmp/ray/session_latest/logs say more)"
    return EnvironmentFault(
        "E-RAY-RESOURCES",
        f"{demand} need {demand.ranks} {unit} in the Ray cluster, which has {present}. {remedy}\n"
        + resource_table(nodes, demand),
    )
