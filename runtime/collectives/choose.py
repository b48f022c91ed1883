"""Which collectives a group of ranks uses: one answer, the same on every rank."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch

from isobit.errors import EnvironmentFault, InputError

from ...shard.plan.hosts import described
from ...shard.plan.plan import ShardPlan
from ..transport.process_group import exchange
from .choice import CPU, NOT_RUN, Choice, chosen, self_tested
from .gather import GatherCollectives
from .hierarchical import HierarchicalCollectives, LeaderExchange
from .interface import Mode
from .library import LibraryCollectives
from .shared import SharedCollectives, SharedSettings
from .shared_hosts import shared_hosts

log = logging.getLogger("isobit.runtime")

INSIDE_WAITS_LONGER = 1.5
"""Ranks that wait for the first of their host, which waits for another host, let it tell why."""


def choose(
    mode: Mode,
    plan: ShardPlan,
    rank: int,
    hosts: Sequence[str],
    timeout_s: float = 60.0,
    settings: SharedSettings | None = None,
    device: torch.device = CPU,
) -> Choice:
    """Agree with all ranks of the default process group on collectives that work.

    `hosts` names the host of every rank; ranks that share no memory are on different ones all the
    same. "auto" takes the custom ones where all ranks share a host, the hierarchical ones where
    some do, each after a self-test that passes everywhere, and gathers otherwise. `timeout_s`
    bounds every wait of the custom ones. For ranks on CUDA devices cuda.choose says how.

    Raises, on every rank alike, EnvironmentFault E-COLL-SHM, E-COLL-CUSTOM or E-COLL-SELF-TEST
    when "custom" or "hierarchical" was asked for and cannot work; InputError E-COLL-MODE when ranks
    were told different modes; RankFault E-COLL-FAILED when a rank is gone.
    """
    obstacles = _agree(mode, plan, rank)
    if device.type == "cuda":
        # Imported late: it needs triton.
        from .cuda.choose import choose_on_cuda

        obstacles = obstacles or several_hosts(hosts, rank)
        return choose_on_cuda(mode, plan, rank, obstacles, timeout_s=timeout_s, device=device)
    if mode == "library":
        return chosen(LibraryCollectives(plan, rank), "library", "asked for")
    if mode == "gather":
        return chosen(GatherCollectives(plan, rank), "gather", "asked for")
    if mode == "auto" and plan.degree == 1:
        return chosen(GatherCollectives(plan, rank), "gather", "a single rank")
    asked = mode in ("custom", "hierarchical")
    shared = () if obstacles else shared_hosts(hosts, rank)
    if len(shared) > 1 and mode == "custom":
        obstacles = f"ranks are on {described(shared)}; --all-reduce hierarchical serves several"
    elif len(shared) == plan.degree > 1 and not asked:
        obstacles = "no two ranks share a host"
    if obstacles:
        if asked:
            raise EnvironmentFault(
                "E-COLL-CUSTOM", f"{obstacles}. Run without asking for {mode} collectives"
            )
        return chosen(GatherCollectives(plan, rank), "gather", obstacles)
    settings = dataclasses.replace(settings or SharedSettings(), timeout_s=timeout_s)
    try:
        if len(shared) == 1 and mode != "hierarchical":
            reason = "asked for" if asked else "all ranks share a host"
            return _custom(plan, rank, settings, reason)
        reason = f"ranks are on {described(shared)}" if len(shared) > 1 else "asked for"
        return _hierarchical(plan, rank, shared, settings, reason)
    except EnvironmentFault as fault:
        if asked:
            raise
        log.warning("custom collectives are off, ranks gather instead: %s", fault)
        tested = fault.message if fault.code == "E-COLL-SELF-TEST" else NOT_RUN
        return chosen(GatherCollectives(plan, rank), "gather", str(fault), tested)


def several_hosts(hosts: Sequence[str], rank: int) -> str:
    """Between which hosts ranks share no memory; empty where all ranks share a host."""
    shared = shared_hosts(hosts, rank)
    return f"ranks are on {described(shared)}" if len(shared) > 1 else ""


def _agree(mode: Mode, plan: ShardPlan, rank: int) -> str:
    """Return what keeps any rank from the custom collectives, the same text everywhere."""
    obstacle = ""
    if mode not in ("gather", "library"):
        try:
            from . import _shared  # noqa: F401
        except ImportError as error:
            obstacle = f"without its C++ part: {error}"
    answers = exchange(f"{mode}\n{obstacle}", rank, plan.degree, "choosing collectives")
    modes = [answer.partition("\n")[0] for answer in answers]
    if len(set(modes)) > 1:
        told = ", ".join(f"rank {index}: {each}" for index, each in enumerate(modes))
        raise InputError("E-COLL-MODE", f"ranks were given different collectives: {told}")
    obstacles = [answer.partition("\n")[2] for answer in answers]
    return "; ".join(f"rank {index} is {text}" for index, text in enumerate(obstacles) if text)


def _custom(plan: ShardPlan, rank: int, settings: SharedSettings, reason: str) -> Choice:
    collectives = SharedCollectives(plan, rank, settings)
    if plan.degree == 1:
        return chosen(collectives, "custom", reason)
    return self_tested(collectives, "custom", plan, rank, settings, reason)


def _hierarchical(
    plan: ShardPlan, rank: int, hosts: Sequence[range], settings: SharedSettings, reason: str
) -> Choice:
    longer = dataclasses.replace(settings, timeout_s=INSIDE_WAITS_LONGER * settings.timeout_s)
    members = next(ranks for ranks in hosts if rank in ranks)
    inside = SharedCollectives(plan, rank, longer, members)
    if plan.degree == 1:
        return chosen(inside, "hierarchical", reason)
    between = LeaderExchange(hosts, settings.timeout_s)
    collectives = HierarchicalCollectives(plan, rank, hosts, inside, between)
    return self_tested(collectives, "hierarchical", plan, rank, settings, reason)
