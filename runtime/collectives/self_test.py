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

from isobit.errors import RankFault

from ...shard.plan.atoms import complete_subtrees
from ...shard.plan.plan import ShardPlan
from ..transport.process_group import exchange, set_up_group
from .gather import GatherCollectives
from .interface import Collectives, DeviceCollectives
from .shared import SharedSettings

SITE = "self-test"
MOST_SKEW_S = 300e-6
# Slots alternate: what the call before the last one left behind must never come back.
REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One call: its input, on the host and where it is used, and what came out."""

    operation: str
    tensor: torch.Tensor
    given: torch.Tensor
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
    trials, fault = _prepare(tested, plan, rank, settings, device)
    # Nobody waits within a call for a rank that is still compiling.
    faults = exchange(fault, rank, plan.degree, SITE)
    if any(faults):
        return [f"rank {index}: {text}" for index, text in enumerate(faults) if text]
    fault = _run(tested, trials, rank)
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


def _prepare(
    tested: Collectives,
    plan: ShardPlan,
    rank: int,
    settings: SharedSettings,
    device: torch.device | str,
) -> tuple[list[Trial], str]:
    """All trials, with the kernels that they start compiled, or what went wrong."""
    try:
        trials = _trials(plan, rank, settings, device)
        if isinstance(tested, DeviceCollectives):
            for trial in trials:
                launches = getattr(tested, f"{trial.operation}_launches")
                for launch in launches(trial.given, trial.out, SITE):
                    launch.load()
    except RuntimeError as error:
        return [], _told_by_cuda(error)
    return trials, ""


def _trials(
    plan: ShardPlan, rank: int, settings: SharedSettings, device: torch.device | str
) -> list[Trial]:
    generator = torch.Generator().manual_seed(rank)
    count = len(complete_subtrees(plan.atoms, plan.owned(rank)))
    trials: list[Trial] = []

    def add(operation: str, own: torch.Tensor, out: torch.Tensor) -> None:
        given = own.to(device)
        trials.append(Trial(operation=operation, tensor=own, given=given, out=out))

    for size in reduce_sizes(plan, settings):
        for repeat in range(REPEATS):
            nodes = torch.randint(-999, 999, (count, 1, size), generator=generator).float()
            if repeat == REPEATS - 1:
                # Whole numbers add up alike in every order; these do not.
                nodes *= 1 + torch.rand(1, 1, size, generator=generator)
            add("all_reduce", nodes, torch.full((1, size), float("nan"), device=device))
    for size in (1, settings.slot_bytes - 1, settings.slot_bytes + 1):
        own = torch.randint(0, 255, (size,), generator=generator, dtype=torch.uint8)
        out = torch.full((plan.degree, size), 255, dtype=torch.uint8, device=device)
        add("all_gather", own, out)
    return trials


def _run(tested: Collectives, trials: list[Trial], rank: int) -> str:
    """Make every call; returns what went wrong. Results are on the host afterwards."""
    skew = random.Random(rank)  # noqa: S311
    try:
        for trial in trials:
            time.sleep(skew.uniform(0, MOST_SKEW_S))
            getattr(tested, trial.operation)(trial.given, trial.out, SITE)
        trials[:] = [dataclasses.replace(trial, out=trial.out.cpu()) for trial in trials]
        tested.check()
    except RankFault as fault:
        return f"{fault.code} {fault.message}"
    except RuntimeError as error:
        return _told_by_cuda(error)
    return ""


def _told_by_cuda(error: RuntimeError) -> str:
    """An illegal access is no fault of a rank that isobit would raise."""
    return f"E-COLL-CUDA {str(error).splitlines()[0]}"


def _compare(trials: list[Trial], plan: ShardPlan, rank: int) -> str:
    """Gather every trial again and describe the first that differs."""
    oracle, found = GatherCollectives(plan, rank, set_up_group()), ""
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
