"""The collectives that ranks settled on, and how their self-test went."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

from isobit.errors import EnvironmentFault

from ...shard.plan.plan import ShardPlan
from .interface import Collectives
from .self_test import self_test
from .shared import SharedSettings

NOT_RUN = "not run"
CPU = torch.device("cpu")
Name = Literal["custom", "hierarchical", "gather", "library"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The collectives of one rank, why they were chosen, and how the self-test went."""

    collectives: Collectives
    name: Name
    reason: str
    invariant: bool
    self_test: str


def self_tested(
    collectives: Collectives,
    name: Name,
    plan: ShardPlan,
    rank: int,
    settings: SharedSettings,
    reason: str,
    device: torch.device = CPU,
) -> Choice:
    """The choice of collectives whose sums around the sizes of `settings` are right on all ranks.

    Raises EnvironmentFault E-COLL-SELF-TEST, and closes them, when any rank's sums were wrong.
    """
    started = time.perf_counter()
    faults = self_test(collectives, plan, rank, settings, device)
    if faults:
        collectives.close()
        raise EnvironmentFault("E-COLL-SELF-TEST", "\n".join(faults))
    passed = f"passed in {time.perf_counter() - started:.3f} s"
    return chosen(collectives, name, reason, passed)


def chosen(collectives: Collectives, name: Name, reason: str, tested: str = NOT_RUN) -> Choice:
    """The choice of `collectives`, and how their self-test went."""
    return Choice(
        collectives=collectives,
        name=name,
        reason=reason,
        invariant=collectives.invariant,
        self_test=tested,
    )
