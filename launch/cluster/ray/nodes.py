"""The nodes of the connected Ray cluster: what each has, what is free, and the table people see."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from .reach import Door, silence

MOST_AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What ranks ask of a cluster: one core each, and with `gpu` one GPU each."""

    ranks: int
    gpu: bool = False

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray sets aside for one rank."""
        return {"GPU": 1, "CPU": 1} if self.gpu else {"CPU": 1}

    def __str__(self) -> str:
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        return f"{ranks} on CUDA" if self.gpu else ranks


@dataclass(frozen=True, kw_only=True)
class Node:
    """One raylet: usually one host.

    `state` "silent": Ray has not given the node up yet, but nobody listens there.
    """

    id: str
    hostname: str
    address: str
    port: int
    state: Literal["alive", "silent", "dead"]
    driver: bool
    cpus: float = 0
    gpus: float = 0
    free_cpus: float = 0
    free_gpus: float = 0

    def __str__(self) -> str:
        return host_name(self.hostname, self.address)

    @property
    def door(self) -> Door:
        """Where its raylet listens for other nodes."""
        return self.address, self.port

    def holds(self, demand: Demand) -> int:
        """How many ranks fit when nothing else runs on the node."""
        return _ranks(self.cpus, self.gpus, demand) if self.state == "alive" else 0

    def room(self, demand: Demand) -> int:
        """How many ranks fit beside what runs there now."""
        return _ranks(self.free_cpus, self.free_gpus, demand) if self.state == "alive" else 0


def host_name(hostname: str, address: str) -> str:
    """How a host is named in every message: `box-b (10.0.0.3)`."""
    return address if hostname in ("", address) else f"{hostname} ({address})"


def _ranks(cpus: float, gpus: float, demand: Demand) -> int:
    return int(min(cpus, gpus) if demand.gpu else cpus)


def cluster_nodes() -> list[Node]:
    """Every node, the driver's first, then by address. Needs a connected Ray.

    A dead node is listed when no live one has its address: Ray remembers every restart. What Ray
    calls alive is asked for a connection as well, since Ray notices a cut link after a minute.
    """
    import ray
    from ray._private.state import available_resources_per_node  # a @DeveloperAPI of Ray's

    here = ray.get_runtime_context().get_node_id()
    free = available_resources_per_node()
    table: list[dict[str, Any]] = ray.nodes()
    alive = [entry for entry in table if entry["Alive"]]
    doors = [(entry["NodeManagerAddress"], entry["NodeManagerPort"]) for entry in alive]
    with ThreadPoolExecutor(min(MOST_AT_A_TIME, len(doors))) as pool:
        silent = {
            entry["NodeID"]
            for entry, reason in zip(alive, pool.map(silence, doors), strict=True)
            if reason is not None
        }
    addresses = {address for address, _ in doors}
    gone = {
        entry["NodeManagerAddress"]: entry
        for entry in table
        if not entry["Alive"] and entry["NodeManagerAddress"] not in addresses
    }
    nodes = []
    for entry in (*alive, *gone.values()):
        name = entry["NodeID"]
        own = free.get(name, {})
        state = "silent" if name in silent else "alive" if entry["Alive"] else "dead"
        nodes.append(
            Node(
                id=name,
                hostname=entry["NodeManagerHostname"],
                address=entry["NodeManagerAddress"],
                port=entry["NodeManagerPort"],
                state=state,
                driver=name == here,
                cpus=entry["Resources"].get("CPU", 0),
                gpus=entry["Resources"].get("GPU", 0),
                free_cpus=own.get("CPU", 0),
                free_gpus=own.get("GPU", 0),
            )
        )
    return sorted(nodes, key=lambda node: (not node.driver, node.address, node.id))


def resource_table(nodes: Sequence[Node], demand: Demand) -> str:
    """Asked, present, free and missing, a line for each node."""
    rows: list[tuple[str, ...]] = [
        ("node", "state", *(("GPUs free",) if demand.gpu else ()), "cores free", "ranks")
    ]
    for node in nodes:
        gpus = (f"{node.free_gpus:g} of {node.gpus:g}",) if demand.gpu else ()
        cores = f"{node.free_cpus:g} of {node.cpus:g}"
        cells = (*gpus, cores, str(node.room(demand)))
        if node.state != "alive":
            cells = ("-",) * len(cells)
        name = f"{node}, the driver's" if node.driver else str(node)
        rows.append((name, node.state, *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    present = sum(node.holds(demand) for node in nodes)
    room = sum(node.room(demand) for node in nodes)
    held = f", held by other jobs {present - room}" if present > room else ""
    missing = max(0, demand.ranks - room)
    return "\n".join(
        [*lines, f"  asked {demand.ranks}, present {present}{held}, missing {missing}"]
    )
