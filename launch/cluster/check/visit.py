"""Facts of every node of the connected Ray cluster, and of the ways between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..ray.nodes import Node, cluster_nodes
from ..ray.versions import node_versions
from .greeting import Door, greet_all
from .network import route
from .node_facts import node_facts

VERSIONS_S = 20.0
FACTS_S = 120.0
"""Importing torch alone may take a minute from a cold disk."""

Reports = dict[str, dict[str, Any]]


class _Visitor:
    """Runs on one node. What it takes and gives is plain: texts, numbers, lists, dicts."""

    def __init__(self, address: str) -> None:
        self._door = Door(address)

    def port(self) -> int:
        return self._door.port

    def facts(self, model: str | None, head: str) -> dict[str, Any]:
        return node_facts(model) | {"route": route(head)}

    def greet(self, doors: list[tuple[str, str, int]]) -> dict[str, Any]:
        return greet_all(doors)


def visit(model: str | None, done: Callable[[int], None]) -> list[dict[str, Any]]:
    """One report per node, the head's first; `model` is the path of a model's folder.

    Needs an open ray_session. `done` is called with the number of nodes whenever one has told its
    facts. A report has "host" (its name), "node" (Ray's id), "address", "state", "head" and "ray"
    (what Ray offers there); "versions" where Ray can run anything; and "facts", "peers" (by node,
    as `greet` returns them) and "clock" (ahead of the head's by "offset_ms", give or take
    "error_ms"), or "error".
    """
    import ray

    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    nodes = sorted(cluster_nodes(), key=lambda node: (node.address != head, node.address, node.id))
    reports = _begun(nodes, head)
    alive = [node for node in nodes if node.state == "alive"]
    for name, told in node_versions(alive, VERSIONS_S).items():
        reports[name]["versions"] = dict(told.versions)
    visitors: dict[str, Any] = {}
    try:
        for node in alive:
            visitors[node.id] = _sent(node)
        asked = {name: visitor.facts.remote(model, head) for name, visitor in visitors.items()}
        answered, silent = _answers(asked, done)
        for name, why in silent.items():
            reports[name]["error"] = why
        for name, facts in answered.items():
            reports[name]["facts"] = facts
        _greetings(reports, {name: visitors[name] for name in answered})
    finally:
        for visitor in visitors.values():
            ray.kill(visitor)
    return list(reports.values())


def _begun(nodes: Sequence[Node], head: str) -> Reports:
    count = Counter(str(node) for node in nodes)
    first = next((node.id for node in nodes if node.address == head), None)
    return {
        node.id: {
            "host": str(node) if count[str(node)] == 1 else f"{node}, node {node.id[:6]}",
            "node": node.id,
            "address": node.address,
            "state": node.state,
            "head": node.id == first,
            "ray": {"CPU": node.cpus, "GPU": node.gpus},
        }
        for node in nodes
    }


def _sent(node: Node) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    affinity = NodeAffinitySchedulingStrategy(node.id, soft=False)
    actor_class = ray.remote(num_cpus=0, max_restarts=0)(_Visitor)
    return actor_class.options(scheduling_strategy=affinity).remote(node.address)


def _greetings(reports: Reports, visitors: dict[str, Any]) -> None:
    """Let every node greet every other one, after the work that would slow the answers down."""
    ports, shut = _answers({name: visitor.port.remote() for name, visitor in visitors.items()})
    doors = [(name, reports[name]["address"], port) for name, port in ports.items()]
    asked = {
        name: visitor.greet.remote([door for door in doors if door[0] != name])
        for name, visitor in visitors.items()
    }
    greeted, silent = _answers(asked)
    for name, why in (shut | silent).items():
        reports[name]["error"] = why
    head = next((name for name, report in reports.items() if report["head"]), "")
    for name, peers in greeted.items():
        reports[name]["peers"] = peers
        if "offset_ms" in (seen := peers.get(head, {})):
            half = seen["round_trip_ms"] / 2
            reports[name]["clock"] = {"offset_ms": seen["offset_ms"], "error_ms": half}


def _answers(
    asked: dict[str, Any], done: Callable[[int], None] = lambda count: None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What nodes answered, and why others did not."""
    import ray
    from ray.exceptions import RayError

    node_of = {answer: node for node, answer in asked.items()}
    waiting, answered, silent = list(node_of), {}, {}
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=FACTS_S)
        if not ready:
            break
        for answer in ready:
            try:
                answered[node_of[answer]] = ray.get(answer)
            except RayError as error:
                silent[node_of[answer]] = str(error).strip().splitlines()[-1]
            done(len(asked))
    silent |= {node_of[answer]: f"no answer within {FACTS_S:.0f} s" for answer in waiting}
    return answered, silent
