"""Before first use: does the custom path give what gathering gives, bit for bit?

A copy test passes on machines that reduce wrongly. So data are random and new in every call, ranks
come with random skew, every result starts as NaN, and sizes lie around each threshold.
"""

from __future__ import annotations

import dataclasses
import random
import time
from dataclasses import dataclass

import torch

from ...kernels.errors import RankFault
from ...shard.atoms import complete_subtrees
from ...shard.plan import ShardPlan
from .gather import GatherCollectives
from .interface import Collectives
from .process_group import exchange
from .shared import SharedSettings

SITE = "self-test"
MOST_SKEW_S = 300e-6
# Slots alternate: what the call before the last one left behind must never come back.
REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One call: its input and what came out."""

    operation: str
    tensor: torch.Tensor
    out: torch.Tensor


def self_test(
    tested: Collectives,
    plan: ShardPlan,
    rank: int,
    settings: SharedSettings,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Return what went wrong, one text a rank, the same list on every rank; empty when all passed.

    Tensors lie on `device`; what gathering gives is always found on CPUs.

    Raises RankFault when a rank is gone.
    """
    trials, fault = _run(tested, plan, rank, settings, device)
    # Only when every rank got through are all of them ready to gather.
    faults = exchange(fault, rank, plan.degree, SITE)
    if not any(faults):
        faults = exchange(_compare(trials, plan, rank), rank, plan.degree, SITE)
    return [f"rank {index}: {text}" for index, text in enumerate(faults) if text]


def reduce_sizes(plan: ShardPlan, settings: SharedSettings) -> list[int]:
    """Numbers of elements: one, odd ones, and those around each threshold."""
    most = max(len(complete_subtrees(plan.atoms, plan.owned(r))) for r in range(plan.degree))
    chunk = settings.slot_bytes // 4 // most // 16 * 16
    two_shot = settings.two_shot_bytes // 4
    around = [size + step for size in (two_shot, chunk) for step in (-1, 0, 1)]
    return sorted({1, 17, 1000, *around, 2 * chunk + 5})


def _run(
    tested: Collectives,
    plan: ShardPlan,
    rank: int,
    settings: SharedSettings,
    device: torch.device | str,
) -> tuple[list[Trial], str]:
    generator = torch.Generator().manual_seed(rank)
    skew = random.Random(rank)  # noqa: S311
    count = len(complete_subtrees(plan.atoms, plan.owned(rank)))
    trials: list[Trial] = []
    try:
        for size in reduce_sizes(plan, settings):
            for repeat in range(REPEATS):
                nodes = torch.randint(-999, 999, (count, 1, size), generator=generator).float()
                if repeat == REPEATS - 1:
                    # Whole numbers add up alike in every order; these do not.
                    nodes *= 1 + torch.rand(1, 1, size, generator=generator)
                out = torch.full((1, size), float("nan"), device=device)
                time.sleep(skew.uniform(0, MOST_SKEW_S))
                tested.all_reduce(nodes.to(device), out, SITE)
                trials.append(Trial(operation="all_reduce", tensor=nodes, out=out))
        for size in (1, settings.slot_bytes - 1, settings.slot_bytes + 1):
            own = torch.randint(0, 255, (size,), generator=generator, dtype=torch.uint8)
            out = torch.full((plan.degree, size), 255, dtype=torch.uint8, device=device)
            time.sleep(skew.uniform(0, MOST_SKEW_S))
            tested.all_gather(own.to(device), out, SITE)
            trials.append(Trial(operation="all_gather", tensor=own, out=out))
        trials = [dataclasses.replace(trial, out=trial.out.cpu()) for trial in trials]
        tested.check()
    except RankFault as fault:
        return [], f"{fault.code} {fault.message}"
    return trials, ""


def _compare(trials: list[Trial], plan: ShardPlan, rank: int) -> str:
    """Gather every trial again and describe the first that differs."""
    oracle, found = GatherCollectives(plan, rank), ""
    for number, trial in enumerate(trials, 1):
        wanted = torch.empty_like(trial.out)
        getattr(oracle, trial.operation)(trial.tensor, wanted, SITE)
        bits = torch.int32 if wanted.dtype == torch.float32 else torch.uint8
        differ = (trial.out.view(bits) != wanted.view(bits)).flatten().nonzero()
        if len(differ) and not found:
            first = int(differ[0])
            found = (
                f"{trial.operation} number {number} of {wanted.numel()} elements: {len(differ)} "
                f"differ from gathering, the first at {first}: "
                f"{trial.out.flatten()[first].item()}, not {wanted.flatten()[first].item()}"
            )
    return found
