"""Facts of every node of the connected Ray cluster, and of the ways between them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from .greeting import Door, greet_all
from .network import route
from .node_facts import node_facts

ANSWER_S = 120.0
"""Importing torch alone may take a minute on a cold disk."""
HEAD = "node:__internal_head__"


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

    Needs an open ray_session. `done` is called with the number
    of nodes whenever one has told its facts.
    A report has "node", "address", "head" and "ray" (what Ray offers there). Then "facts", "peers"
    (by node, as `greet` returns them) and "clock" (ahead of the head's by "offset_ms", give or take
    "error_ms"), or "error" and, where isobit is installed, its version as "isobit".
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = sorted(
        (node for node in ray.nodes() if node["Alive"]),
        key=lambda node: (HEAD not in node["Resources"], node["NodeManagerAddress"]),
    )
    actor_class = ray.remote(num_cpus=0, max_restarts=0)(_Visitor)
    visitors: dict[str, Any] = {}
    reports: dict[str, dict[str, Any]] = {}
    try:
        for node in nodes:
            name, address = node["NodeID"], node["NodeManagerAddress"]
            affinity = NodeAffinitySchedulingStrategy(name, soft=False)
            visitors[name] = actor_class.options(scheduling_strategy=affinity).remote(address)
            reports[name] = {
                "node": name,
                "address": address,
                "head": HEAD in node["Resources"],
                "ray": {unit: node["Resources"].get(unit, 0) for unit in ("CPU", "GPU")},
            }
        head = nodes[0]["NodeManagerAddress"]
        asked = {name: visitor.facts.remote(model, head) for name, visitor in visitors.items()}
        facts, silent = _answers(asked, done)
        for name, why in silent.items():
            reports[name]["error"] = why
        for name, fact in facts.items():
            reports[name]["facts"] = fact
        _between(reports, visitors)
        _versions_of_the_silent(reports)
    finally:
        for visitor in visitors.values():
            ray.kill(visitor)
    return list(reports.values())


def _between(reports: dict[str, dict[str, Any]], visitors: dict[str, Any]) -> None:
    """Let every node greet every other one, after the work that would slow the answers down."""
    well = [name for name, report in reports.items() if "facts" in report]
    ports, shut = _answers({name: visitors[name].port.remote() for name in well})
    doors = [(name, reports[name]["address"], port) for name, port in ports.items()]
    asked = {
        name: visitors[name].greet.remote([door for door in doors if door[0] != name])
        for name in well
    }
    greeted, silent = _answers(asked)
    for name, why in (shut | silent).items():
        reports[name]["error"] = why
    head = next(iter(reports))
    for name, peers in greeted.items():
        reports[name]["peers"] = peers
        if "offset_ms" in (seen := peers.get(head, {})):
            half = seen["round_trip_ms"] / 2
            reports[name]["clock"] = {"offset_ms": seen["offset_ms"], "error_ms": half}


def _versions_of_the_silent(reports: dict[str, dict[str, Any]]) -> None:
    """Ask nodes that failed by a function that every Python has: isobit may be missing there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for name in (name for name, report in reports.items() if "error" in report):
        affinity = NodeAffinitySchedulingStrategy(name, soft=False)
        version = ray.remote(num_cpus=0, max_retries=0)(metadata.version)
        asked[name] = version.options(scheduling_strategy=affinity).remote("isobit")
    for name, version in _answers(asked)[0].items():
        reports[name]["isobit"] = version


def _answers(
    asked: dict[str, Any], done: Callable[[int], None] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What nodes answered, and why others did not."""
    import ray
    from ray.exceptions import RayError

    node_of = {answer: node for node, answer in asked.items()}
    waiting, answered, silent = list(node_of), {}, {}
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=ANSWER_S)
        if not ready:
            break
        for answer in ready:
            try:
                answered[node_of[answer]] = ray.get(answer)
            except RayError as error:
                silent[node_of[answer]] = str(error).strip().splitlines()[-1]
            if done is not None:
                done(len(asked))
    silent |= {node_of[answer]: f"no answer within {ANSWER_S:.0f} s" for answer in waiting}
    return answered, silent
