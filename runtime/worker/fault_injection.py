"""The one door for injected faults, so that tests can prove that faults are caught.

`ISOBIT_FAULT=package.module:callable` is called on each rank after loading with a FaultContext.
"""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass

from isobit.errors import InputError

from ...shard.load.load import RankWeights
from ...shard.plan.plan import ShardPlan
from ..collectives.interface import Collectives
from ..forward.decoder import Decoder

log = logging.getLogger("isobit.runtime")
VARIABLE = "ISOBIT_FAULT"


@dataclass(frozen=True, kw_only=True)
class FaultContext:
    """What a fault may break: the decoder holds weights, collectives, KV cache and tracer."""

    rank: int
    plan: ShardPlan
    decoder: Decoder

    @property
    def degree(self) -> int:
        return self.plan.degree

    @property
    def model(self) -> RankWeights:
        """This rank's share of the weights."""
        return self.decoder.weights

    @property
    def collectives(self) -> Collectives:
        """Assign to decoder.collectives before the first step to put something around them."""
        return self.decoder.collectives


def inject_fault(context: FaultContext) -> bool:
    """Call the fault that the environment names, and say whether it does.

    Raises InputError E-FAULT.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return False
    module, _, attribute = name.partition(":")
    try:
        fault = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError("E-FAULT", f"{VARIABLE}={name}: {error}") from error
    log.warning("%s: injecting %s on rank %d of %d", VARIABLE, name, context.rank, context.degree)
    fault(context)
    return True
