"""The memory of a CUDA device beside what was planned for it: how large the KV cache becomes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from isobit.errors import EnvironmentFault, InputError

from ..kernels.gpu.card import MOST_GRAPHS, MOST_SAMPLED, Card, CardMemory
from ..kernels.step.kv_cache import PAGE
from ..shard.checkpoint.safetensors_file import TensorEntry
from ..shard.estimate.memory import RankMemory, memory_model
from ..shard.model.spec import ModelSpec
from ..shard.plan.plan import ShardPlan

log = logging.getLogger("isobit.runtime")

RESERVE = 512 << 20
"""Bytes a rank leaves free beside everything planned: NCCL, what ops need between their kernels,
gaps between tensors."""
MARGIN_SHARE, MARGIN_BYTES = 0.05, 256 << 20
"""What a rank holds after loading may differ by both together from the plan, which counts weights
as CPUs have them: a card's tables of scales are up to 4 % of int4 weights larger."""
GRAPH_NODE_BYTES = 8 << 10
"""What a launch in a CUDA graph is allowed to take of the card. A guess until a card has told."""
LAUNCHES_PER_LAYER, LAUNCHES_BESIDE = 20, 12
"""At most, of one step."""
GIB = 1 << 30
MOST_PAGES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a rank is to have room for.

    `utilization` is the share of the card that isobit may use, all ranks on it together. `pages` 0
    takes as many pages as there is room for; `sequences` are sampled in one step. `graphs`: bytes
    of CUDA graphs, all that are kept.
    """

    planned: RankMemory
    utilization: float
    ranks_on_card: int
    sequences: int
    pages: int
    graphs: int = 0

    @property
    def of_step(self) -> int:
        """Bytes of a step's buffers and graphs."""
        return self.planned.step.total(self.sequences) + self.graphs


def graph_bytes(layers: int) -> int:
    """Room for as many graphs of a model as a program keeps."""
    return MOST_GRAPHS * (LAUNCHES_PER_LAYER * layers + LAUNCHES_BESIDE) * GRAPH_NODE_BYTES


def check_utilization(utilization: float) -> None:
    """Raise InputError E-MEM-UTILIZATION for a share that is none."""
    if not 0 < utilization <= 1:
        raise InputError(
            "E-MEM-UTILIZATION",
            f"--gpu-memory-utilization {utilization:g}: expected more than 0 and at most 1",
        )


def unplanned(demand: Demand, card: CardMemory) -> str:
    """What to warn of when a loaded rank does not hold what was planned; empty where it does."""
    planned = demand.planned.weights.total + demand.planned.rotary
    margin = MARGIN_SHARE * planned + MARGIN_BYTES
    if abs(card.allocated - planned) <= margin:
        return ""
    return (
        f"rank {demand.planned.rank} holds {_gib(card.allocated)} after loading, "
        f"{_gib(planned)} were planned; up to {_gib(margin)} of difference would be usual"
    )


def room_for_pages(demand: Demand, card: CardMemory) -> int:
    """How many pages of KV cache a loaded rank has room for; less than 0 where all is full."""
    spoken_for = demand.of_step + RESERVE
    limit = int(card.total * demand.utilization)
    used = card.total - card.free
    left = (limit - used) // demand.ranks_on_card - spoken_for
    page = PAGE * demand.planned.kv_per_token
    if page:
        return left // page
    return MOST_PAGES if left >= 0 else -1  # a rank without KV heads


def short_of(demand: Demand, card: CardMemory) -> str:
    """What is missing where the pages do not fit, with every number; empty where they do."""
    wanted, room = max(1, demand.pages), room_for_pages(demand, card)
    if room >= wanted:
        return ""
    page = PAGE * demand.planned.kv_per_token
    step = demand.of_step
    shared = f" for {demand.ranks_on_card} ranks" if demand.ranks_on_card > 1 else ""
    return (
        f"rank {demand.planned.rank}: the KV cache needs {_gib(wanted * page)} ({wanted} pages of "
        f"{PAGE} tokens), {_gib(max(0, room) * page)} are left. Of {_gib(card.total)} "
        f"{demand.utilization:.0%} may be used{shared}; {_gib(card.total - card.free)} are in use, "
        f"{_gib(card.allocated)} of them by this rank; a step takes {_gib(step)}, {_gib(RESERVE)} "
        "stay free"
    )


WAYS_OUT = (
    "Raise --gpu-memory-utilization, end what else uses the GPU, ask for fewer or shorter "
    "answers, or share the model among more ranks; `isobit plan MODEL -tp N --gpu-memory GIB` "
    "says what fits"
)


def settle_pages(
    demand: Demand, measure: Callable[[], CardMemory], tell: Callable[[str], list[str]]
) -> int:
    """How many pages every rank allocates: what was asked for, or what the fullest has room for.

    `tell` gives every rank's text. Warns where a rank holds other than was planned. Raises
    EnvironmentFault E-MEM-KV on all ranks alike, naming all that lack room.
    """
    # Ranks may share a card: nobody measures before everybody has loaded.
    tell("")
    card = measure()
    if warning := unplanned(demand, card):
        log.warning("%s", warning)
    answers = [
        answer.partition("\n")
        for answer in tell(f"{room_for_pages(demand, card)}\n{short_of(demand, card)}")
    ]
    if missing := [text for _, _, text in answers if text]:
        raise EnvironmentFault("E-MEM-KV", "\n".join([*missing, WAYS_OUT]))
    return demand.pages or min(int(room) for room, _, _ in answers)


def rank_memory(
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    dtype: torch.dtype,
    step_rows: int,
    entries: Mapping[str, TensorEntry] | None,
) -> RankMemory:
    """What was planned for one rank; `entries` as for memory_model."""
    name = str(dtype).removeprefix("torch.")
    return memory_model(spec, name, step_rows, entries).ranks(plan)[rank]


def pages_on_card(
    planned: RankMemory,
    card: Card,
    utilization: float,
    pages: int,
    graphs: int,
    tell: Callable[[str], list[str]],
) -> int:
    """As settle_pages, of a loaded rank on a card; `pages` 0 takes all there is room for."""
    identity = card.identity()
    demand = Demand(
        planned=planned,
        utilization=utilization,
        ranks_on_card=tell(identity).count(identity),
        sequences=MOST_SAMPLED,
        pages=pages,
        graphs=graphs,
    )
    return settle_pages(demand, card.memory, tell)


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"
