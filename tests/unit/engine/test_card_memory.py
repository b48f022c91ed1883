"""The KV cache of a card: what is left of it, compared with the plan; no card is needed."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isobit.errors import EnvironmentFault, InputError
from isobit.kernels.gpu.card import MOST_GRAPHS, MOST_SAMPLED, CardMemory
from isobit.kernels.step.kv_cache import PAGE
from isobit.runtime.card_memory import (
    GRAPH_NODE_BYTES,
    MARGIN_BYTES,
    RESERVE,
    Demand,
    check_utilization,
    graph_bytes,
    room_for_pages,
    settle_pages,
)
from isobit.runtime.evaluation.score_samples import score
from isobit.runtime.scheduler.batch import StepRows
from isobit.runtime.settings.engine import EngineSettings, check_device, most_sampled
from isobit.shard.estimate.memory import RankMemory
from isobit.shard.estimate.stored import WeightBytes
from isobit.shard.estimate.workspace import StepBytes

GIB, MIB = 1 << 30, 1 << 20
WEIGHTS, STEP, PER_TOKEN = 8 * GIB, 256 * MIB, 96 << 10
PLANNED = RankMemory(
    rank=1,
    weights=WeightBytes(replicated=0, embeddings=WEIGHTS),
    true_weights=WEIGHTS,
    kv_heads=2,
    kv_per_token=PER_TOKEN,
    rotary=0,
    step=StepBytes(rows=512, fixed=STEP, per_row=0, per_sampled=0),
)
DEMAND = Demand(planned=PLANNED, utilization=0.9, ranks_on_card=1, sequences=16, pages=0)
CONTEXT = 400 * MIB
CARD = CardMemory(total=24 * GIB, free=24 * GIB - WEIGHTS - CONTEXT, allocated=WEIGHTS)


def alone(text: str) -> list[str]:
    return [text]


def test_what_is_left_of_the_share_becomes_pages() -> None:
    pages = room_for_pages(DEMAND, CARD)
    taken = WEIGHTS + CONTEXT + STEP + RESERVE
    kv = PAGE * PER_TOKEN
    assert taken + pages * kv <= 0.9 * 24 * GIB < taken + (pages + 1) * kv
    assert settle_pages(DEMAND, lambda: CARD, alone) == pages


def test_graphs_and_all_rows_that_may_be_sampled_take_their_room() -> None:
    """Graphs of 48 layers, and logits of a vocabulary of 152064."""
    graphs = graph_bytes(48)
    assert MOST_GRAPHS * 48 * 15 * GRAPH_NODE_BYTES < graphs < GIB / 4
    step = replace(PLANNED.step, per_sampled=8 * 152064)
    less = replace(DEMAND, graphs=graphs, planned=replace(PLANNED, step=step))
    missing = (room_for_pages(DEMAND, CARD) - room_for_pages(less, CARD)) * PAGE * PER_TOKEN
    assert abs(missing - graphs - 16 * 8 * 152064) < PAGE * PER_TOKEN


@pytest.mark.parametrize(("device", "rows"), [("cpu", 512), ("cuda", MOST_SAMPLED)])
def test_a_card_scores_no_more_rows_at_once_than_were_planned(device: str, rows: int) -> None:
    assert most_sampled(EngineSettings(device=device)) == rows
    steps: list[int] = []

    def score_step(_: object, step: StepRows, __: object) -> dict:
        count = len(step.sampled)
        steps.append(count)
        return {
            "tokens": [0] * count, "finite": [True] * count, "log_probabilities": [0.0] * count,
            "divergences": [],
        }  # fmt: skip

    engine: Any = SimpleNamespace(
        spec=SimpleNamespace(vocab_size=1000, max_positions=4096),
        settings=EngineSettings(device=device),
        kv_pages=64,
        score_step=score_step,
    )
    assert len(score(engine, [[1] * 601]).tokens) == 600
    assert max(steps) == rows and sum(steps) == 600


def test_ranks_of_one_card_share_what_is_left() -> None:
    both = replace(CARD, free=24 * GIB - 2 * (WEIGHTS + CONTEXT))
    pages = room_for_pages(replace(DEMAND, ranks_on_card=2), both)
    taken = 2 * (WEIGHTS + CONTEXT + STEP + RESERVE)
    assert taken + 2 * pages * PAGE * PER_TOKEN <= 0.9 * 24 * GIB
    assert taken + 2 * (pages + 1) * PAGE * PER_TOKEN > 0.9 * 24 * GIB


def test_all_ranks_take_what_the_fullest_has_room_for() -> None:
    told: list[str] = []

    def tell(text: str) -> list[str]:
        told.append(text)
        return [text, "7\n"] if text else ["", ""]

    assert settle_pages(DEMAND, lambda: CARD, tell) == 7
    assert told[0] == ""  # everybody has loaded


def test_a_rank_without_kv_heads_limits_nobody() -> None:
    empty = replace(DEMAND, planned=replace(PLANNED, kv_per_token=0))
    assert settle_pages(empty, lambda: CARD, lambda text: [text, "7\n"] if text else []) == 7
    with pytest.raises(EnvironmentFault):
        settle_pages(empty, lambda: replace(CARD, free=0), alone)


def test_what_was_asked_for_is_taken_where_it_fits() -> None:
    assert settle_pages(replace(DEMAND, pages=5), lambda: CARD, alone) == 5


@pytest.mark.parametrize("off", [1, -1])
def test_a_rank_that_holds_other_than_planned_warns_with_both_numbers(off: int, caplog) -> None:
    usual = replace(CARD, allocated=WEIGHTS + off * MARGIN_BYTES)
    strange = replace(CARD, allocated=WEIGHTS + off * (WEIGHTS // 20 + MARGIN_BYTES + MIB))
    with caplog.at_level(logging.WARNING):
        settle_pages(DEMAND, lambda: usual, alone)
        assert not caplog.records
        settle_pages(DEMAND, lambda: strange, alone)
    held = strange.allocated / GIB
    assert caplog.messages == [
        f"rank 1 holds {held:.2f} GiB after loading, 8.00 GiB were planned; up to 0.65 GiB of "
        "difference would be usual"
    ]


def test_too_little_memory_names_every_rank_every_number_and_the_ways_out() -> None:
    other = "0\nrank 0: the KV cache needs more"
    full = replace(CARD, free=2 * GIB)

    def tell(text: str) -> list[str]:
        return [other, text]

    with pytest.raises(EnvironmentFault) as caught:
        settle_pages(replace(DEMAND, pages=10), lambda: full, tell)
    lines = caught.value.message.splitlines()
    assert caught.value.code == "E-MEM-KV"
    assert lines[0] == "rank 0: the KV cache needs more"
    for number in ("0.06 GiB (10 pages of 64 tokens)", "0.00 GiB are left", "Of 24.00 GiB 90%",
                   "22.00 GiB are in use, 8.00 GiB of them by this rank", "a step takes 0.25 GiB",
                   "0.50 GiB stay free"):  # fmt: skip
        assert number in lines[1]
    assert "--gpu-memory-utilization" in lines[2] and "isobit plan" in lines[2]


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_is_more_than_nothing_and_at_most_all(share: float) -> None:
    with pytest.raises(InputError, match="E-MEM-UTILIZATION"):
        check_utilization(share)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gpu_memory_utilization": 0.5}, "--gpu-memory-utilization goes with --device cuda"),
        ({"kv_pages": 0}, "0 pages of KV cache: expected at least 1"),
        ({"device": "cuda", "gpu_memory_utilization": 2.0}, "E-MEM-UTILIZATION"),
    ],
)
def test_settings_that_a_device_cannot_take_are_refused(changed: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_device(EngineSettings(**changed), torch.bfloat16)
