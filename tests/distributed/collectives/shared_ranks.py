"""The ranks of three tests of collectives: run as a module with the FOLDERs of groups.

Each folder is one group of ranks; its job.json names a scenario and its numbers. What a scenario
returns goes to result-RANK.json.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from isobit.errors import IsobitError
from isobit.runtime.collectives.choose import choose
from isobit.runtime.collectives.hierarchical import HierarchicalCollectives
from isobit.runtime.collectives.measure import plan_of_atoms
from isobit.runtime.collectives.shared import SharedCollectives, SharedSettings
from isobit.runtime.collectives.tree import sum_subtrees
from isobit.runtime.transport import rendezvous
from isobit.shard.plan.atoms import complete_subtrees
from isobit.shard.plan.plan import ShardPlan

from ..forked import run_group
from ..numbers import numpy_tree, wild

WIDTH = 37
ROWS = (5, 1, 0, 64, 5, 5, 200)
CALL = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
)


def sums(plan: ShardPlan, rank: int, job: dict[str, Any]) -> list[str]:
    """Every way through the code gives numpy's tree; returns what differs."""
    wrong = []
    for settings in job["settings"]:
        collectives = SharedCollectives(plan, rank, SharedSettings(**settings))
        for number, rows in enumerate(ROWS):
            leaves = wild((plan.atoms, rows, WIDTH), seed=number)
            out = torch.full((rows, WIDTH), float("nan"))
            nodes = own_nodes(plan, rank, leaves)
            if number % 2:
                function, context = collectives.native_all_reduce(WIDTH, "native")
                assert not CALL(function)(context, nodes.data_ptr(), out.data_ptr(), rows)
            else:
                collectives.all_reduce(nodes, out, f"site {number}")
            if out.numpy().tobytes() != numpy_tree(leaves).tobytes():
                wrong.append(f"{settings} sum of {rows} rows")
            everyone = torch.from_numpy(wild((plan.degree, rows, 3), seed=number)).bfloat16()
            gathered = torch.zeros_like(everyone)
            if number % 2:
                function, context = collectives.native_all_gather(6, "native")
                own, target = everyone[rank].data_ptr(), gathered.data_ptr()
                assert not CALL(function)(context, own, target, rows)
            else:
                collectives.all_gather(everyone[rank].contiguous(), gathered, "gather")
            if not torch.equal(gathered, everyone):
                wrong.append(f"{settings} gather of {rows} rows")
        collectives.close()
    return wrong


def own_nodes(plan: ShardPlan, rank: int, leaves: Any) -> torch.Tensor:
    owned = plan.owned(rank)
    partials = torch.from_numpy(leaves[owned.start : owned.stop])
    return torch.stack(sum_subtrees(partials, owned, plan.atoms))


def trouble(plan: ShardPlan, rank: int, job: dict[str, Any]) -> list[Any]:
    """The third call goes wrong on the last rank; returns how it and the fourth end."""
    timeout_s = job.get("timeouts", {}).get(str(rank), 30)
    settings = SharedSettings(timeout_s=timeout_s, two_shot_bytes=job["two_shot"])
    collectives = SharedCollectives(plan, rank, settings)
    victim, results = rank == plan.degree - 1, []
    count = len(complete_subtrees(plan.atoms, plan.owned(rank)))
    for number in (1, 2, 3, 4):
        rows, site = 2, f"layers.{number}.out"
        if victim and number == 3:
            match job["trouble"]:
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "left":
                    collectives.close()
                case "size":
                    rows = 3
                case "site":
                    site = "layers.4.out"
        nodes, out = torch.ones(count, rows, 8), torch.empty(rows, 8)
        started = time.monotonic()
        try:
            if victim and number == 3 and job["trouble"] == "operation":
                gathered = torch.empty(plan.degree, rows, 8)
                collectives.all_gather(out, gathered, "layers.3.out")
            else:
                collectives.all_reduce(nodes, out, site)
            results.append(None)
        except IsobitError as fault:
            results.append([fault.code, fault.message, time.monotonic() - started])
    return results


def stale(right: Callable, self: Any, nodes: Any, out: Any, site: str) -> None:
    """What came two calls ago comes again, as from a slot that was read too early."""
    right(self, nodes, out, site)
    kept = self.__dict__.setdefault("kept", [])
    kept.append(out.clone())
    if len(kept) > 2 and kept[-3].shape == out.shape:
        out.copy_(kept[-3])


def tail(right: Callable, self: Any, nodes: Any, out: Any, site: str) -> None:
    """The last elements of a long sum never arrive."""
    kept = out.flatten()[-16:].clone()
    right(self, nodes, out, site)
    if out.numel() > 1000:
        out.view(-1)[-16:] = kept


def choice(plan: ShardPlan, rank: int, job: dict[str, Any]) -> list[Any]:
    """What is chosen in each mode, or how choosing fails."""
    tested = HierarchicalCollectives if "hosts" in job else SharedCollectives
    right = tested.all_reduce
    if rank == plan.degree - 1 and "fault" in job:
        broken = {"stale": stale, "tail": tail}[job["fault"]]
        # For the rest of this process, which is one rank.
        patch.object(tested, "all_reduce", lambda *args: broken(right, *args)).start()
    results = []
    for mode in job["modes"]:
        mode = mode.split(",")[min(rank, mode.count(","))]
        settings = SharedSettings(**job.get("settings", {}))
        try:
            chosen = choose(mode, plan, rank, hosts_of(job), 30, settings)
        except IsobitError as fault:
            results.append([fault.code, fault.message])
            continue
        count = len(complete_subtrees(plan.atoms, plan.owned(rank)))
        out = torch.empty(1, 3)
        chosen.collectives.all_reduce(torch.ones(count, 1, 3), out, "after")
        assert out.tolist() == [[sum(job["nodes"])] * 3]
        results.append([chosen.name, chosen.reason, chosen.self_test, chosen.invariant])
        chosen.collectives.close()
    return results


def hosts_of(job: dict[str, Any]) -> list[str]:
    """The name of each rank's host: job["hosts"] says how many ranks are on each."""
    counts = job.get("hosts", [job["degree"]])
    return [f"host {host}" for host, count in enumerate(counts) for _ in range(count)]


def several_hosts(plan: ShardPlan, rank: int, job: dict[str, Any]) -> list[str]:
    """Hierarchical sums and gathers give numpy's tree; returns what differs."""
    wrong = []
    for number, changes in enumerate(job["settings"]):
        settings = SharedSettings(**changes)
        chosen = choose("hierarchical", plan, rank, hosts_of(job), 30, settings)
        for rows in ROWS:
            leaves = wild((plan.atoms, rows, WIDTH), seed=number + rows)
            out = torch.full((rows, WIDTH), float("nan"))
            chosen.collectives.all_reduce(own_nodes(plan, rank, leaves), out, f"{rows} rows")
            if out.numpy().tobytes() != numpy_tree(leaves).tobytes():
                wrong.append(f"{changes} sum of {rows} rows")
            everyone = torch.from_numpy(wild((plan.degree, rows, 3), seed=number)).bfloat16()
            gathered = torch.zeros_like(everyone)
            chosen.collectives.all_gather(everyone[rank].contiguous(), gathered, "gather")
            if not torch.equal(gathered, everyone):
                wrong.append(f"{changes} gather of {rows} rows")
        wrong += [] if chosen.self_test.startswith("passed") else [chosen.self_test]
        chosen.collectives.close()
    return wrong


def host_gone(plan: ShardPlan, rank: int, job: dict[str, Any]) -> list[Any]:
    """The last rank, alone on its host, ends before the second sum; how that sum ends elsewhere."""
    chosen = choose("auto", plan, rank, hosts_of(job), 20)
    nodes = torch.ones(len(complete_subtrees(plan.atoms, plan.owned(rank))), 2, 8)
    out = torch.empty(2, 8)
    chosen.collectives.all_reduce(nodes, out, "layers.1.out")
    if rank == plan.degree - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        chosen.collectives.all_reduce(nodes, out, "layers.2.out")
    except IsobitError as fault:
        return [fault.code, fault.message]
    return []


def run_rank(folder: Path, job: dict[str, Any], rank: int) -> None:
    plan = plan_of_atoms(job["degree"], job.get("atoms", 8))
    rendezvous.join(f"file://{folder / 'rendezvous'}", rank, plan.degree)
    scenarios = (sums, trouble, choice, several_hosts, host_gone)
    scenario = next(each for each in scenarios if each.__name__ == job["scenario"])
    result = scenario(plan, rank, job)
    (folder / f"result-{rank}.json").write_text(json.dumps(result))


def main() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        job = json.loads((folder / "job.json").read_text())
        run_group(job["degree"], partial(run_rank, folder, job))


main()
