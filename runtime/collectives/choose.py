"""Which collectives a group of ranks uses: one answer, the same on every rank."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import Literal

import torch

from ...kernels.errors import EnvironmentFault, InputError
from ...shard.plan import ShardPlan
from .gather import GatherCollectives
from .interface import Collectives, Mode
from .library import LibraryCollectives
from .process_group import exchange
from .self_test import self_test
from .shared import SharedCollectives, SharedSettings

log = logging.getLogger("isobit.runtime")

NOT_RUN = "not run"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The collectives of one rank, why they were chosen, and how the self-test went."""

    collectives: Collectives
    name: Literal["custom", "gather", "library"]
    reason: str
    invariant: bool
    self_test: str


def choose(
    mode: Mode,
    plan: ShardPlan,
    rank: int,
    same_host: bool,
    timeout_s: float = 60.0,
    settings: SharedSettings | None = None,
    device: torch.device = CPU,
) -> Choice:
    """Agree with all ranks of the default process group on collectives that work.

    "auto" takes the custom ones where all ranks share a host and the self-test passes everywhere,
    and gathers otherwise. `timeout_s` bounds every wait of the custom ones. For ranks on CUDA
    devices cuda.choose says how.

    Raises, on every rank alike, EnvironmentFault E-COLL-SHM, E-COLL-CUSTOM or E-COLL-SELF-TEST
    when "custom" was asked for and cannot work; InputError E-COLL-MODE when ranks were told
    different modes; RankFault E-COLL-FAILED when a rank is gone.
    """
    obstacles = _agree(mode, plan, rank, "" if same_host else "not on the host of the others")
    if device.type == "cuda":
        # Imported late: it needs triton.
        from .cuda.choose import choose_on_cuda

        return choose_on_cuda(mode, plan, rank, obstacles, timeout_s=timeout_s, device=device)
    if mode == "library":
        return _choice(LibraryCollectives(plan, rank), "library", "asked for")
    if mode == "gather":
        return _choice(GatherCollectives(plan, rank), "gather", "asked for")
    if mode == "auto" and plan.degree == 1:
        return _choice(GatherCollectives(plan, rank), "gather", "a single rank")
    if obstacles:
        if mode == "custom":
            raise EnvironmentFault(
                "E-COLL-CUSTOM", f"{obstacles}. Run without asking for custom collectives"
            )
        return _choice(GatherCollectives(plan, rank), "gather", obstacles)
    settings = dataclasses.replace(settings or SharedSettings(), timeout_s=timeout_s)
    reason = "asked for" if mode == "custom" else "all ranks share a host"
    try:
        return _custom(plan, rank, settings, reason)
    except EnvironmentFault as fault:
        if mode == "custom":
            raise
        log.warning("custom collectives are off, ranks gather instead: %s", fault)
        tested = fault.message if fault.code == "E-COLL-SELF-TEST" else NOT_RUN
        return _choice(GatherCollectives(plan, rank), "gather", str(fault), tested)


def _agree(mode: Mode, plan: ShardPlan, rank: int, obstacle: str) -> str:
    """Return what keeps any rank from the custom collectives, the same text everywhere."""
    if not obstacle and mode in ("auto", "custom"):
        try:
            from . import _shared  # noqa: F401
        except ImportError as error:
            obstacle = f"without its C++ part: {error}"
    answers = exchange(f"{mode}\n{obstacle}", rank, plan.degree, "choosing collectives")
    modes = [answer.partition("\n")[0] for answer in answers]
    if len(set(modes)) > 1:
        told = ", ".join(f"rank {index}: {each}" for index, each in enumerate(modes))
        raise InputError("E-COLL-MODE", f"ranks were told different collectives: {told}")
    obstacles = [answer.partition("\n")[2] for answer in answers]
    return "; ".join(f"rank {index} is {text}" for index, text in enumerate(obstacles) if text)


def _custom(plan: ShardPlan, rank: int, settings: SharedSettings, reason: str) -> Choice:
    collectives = SharedCollectives(plan, rank, settings)
    if plan.degree == 1:
        return _choice(collectives, "custom", reason)
    started = time.perf_counter()
    faults = self_test(collectives, plan, rank, settings)
    if faults:
        collectives.close()
        raise EnvironmentFault("E-COLL-SELF-TEST", "\n".join(faults))
    passed = f"passed in {time.perf_counter() - started:.3f} s"
    return _choice(collectives, "custom", reason, passed)


def _choice(
    collectives: Collectives,
    name: Literal["custom", "gather", "library"],
    reason: str,
    tested: str = NOT_RUN,
) -> Choice:
    return Choice(
        collectives=collectives,
        name=name,
        reason=reason,
        invariant=collectives.invariant,
        self_test=tested,
    )
