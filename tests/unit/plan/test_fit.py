"""What fits, against counting upwards until it does not; and the ways out that are offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.kernels.step.kv_cache import PAGE
from isobit.shard.estimate.explain import Question, explain
from isobit.shard.estimate.fit import GIB, Budget, compare, fit, ways_out
from isobit.shard.estimate.memory import memory_model
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.plan import PlanSettings, make_plan

from ..configs import QWEN_14B, config

SPEC = spec_from_config(config(max_position_embeddings=1000), None)
MEMORY = memory_model(SPEC, "bfloat16", 16)


def ranks_of(degree: int, layout: str = "pad"):
    settings = PlanSettings(degree=degree, layout=layout)  # type: ignore[arg-type]
    return MEMORY.ranks(make_plan(SPEC, settings))


@given(
    degree=st.integers(1, 8),
    length=st.integers(1, 1000),
    room=st.lists(st.integers(-200_000, 3_000_000), min_size=8, max_size=8),
)
def test_context_and_sequences_are_the_largest_that_fit(degree, length, room):
    ranks = ranks_of(degree)
    limits = [rank.fixed(1) + more for rank, more in zip(ranks, room, strict=False)]
    found = fit(ranks, limits, length, SPEC.max_positions)

    def holds(tokens: int, sequences: int) -> bool:
        return all(r.total(tokens, sequences) <= u for r, u in zip(ranks, limits, strict=True))

    contexts = [t for t in (*range(PAGE, 1000, PAGE), 1000) if holds(t, 1)]
    assert found.context == max(contexts, default=0)
    sequences = 0
    while holds(length, sequences + 1):
        sequences += 1
    assert found.sequences == sequences
    assert found.fits == (sequences > 0)
    assert found.short_by == max(
        rank.total(length) - limit for rank, limit in zip(ranks, limits, strict=True)
    )


def test_limits_follow_the_order_of_ranks():
    budget = Budget(gib=(24.0, 12.0), utilization=0.5)
    assert budget.limits(1) == (12 * GIB,)
    assert budget.limits(2) == (12 * GIB, 6 * GIB)
    assert budget.limits(3) is None
    assert Budget(gib=(24.0,), utilization=0.5).limits(3) == (12 * GIB,) * 3


def test_a_14b_model_on_24_gib_cards():
    """By hand: 800 KiB of KV cache a token, so 32768 tokens take 25 GiB over all ranks."""
    spec = spec_from_config(QWEN_14B, None)
    memory = memory_model(spec, "float16", 512)
    settings, budget = PlanSettings(degree=1), Budget(gib=(24.0,), utilization=0.9)
    options = compare(memory, settings, budget, 32768, None)
    by_degree = {o.degree: o for o in options if o.layout == "pad"}
    assert by_degree[1].fit is not None and not by_degree[1].fit.fits
    assert by_degree[2].fit is not None and by_degree[2].fit.fits
    assert by_degree[4].fit is not None
    # Four ranks: 6.25 GiB a sequence beside 2.3 GiB of weights leave room for three in 21.6.
    assert by_degree[4].fit.sequences == 3
    assert [(o.degree, o.layout) for o in ways_out(options, settings)] == [(2, "pad")]


def test_the_other_layout_is_offered_where_fewer_ranks_do():
    """A model whose padding is what does not fit: 9 groups become 16."""
    spec = spec_from_config(
        config(
            intermediate_size=9 * 128,
            hidden_size=1024,
            num_attention_heads=8,
            num_key_value_heads=8,
            quantization_config={**QWEN_14B["quantization_config"], "bits": 8},
        ),
        None,
    )
    memory = memory_model(spec, "bfloat16", 1)
    settings = PlanSettings(degree=2)
    ragged, pad = (
        max(r.total(64) for r in memory.ranks(make_plan(spec, PlanSettings(degree=2, layout=name))))
        for name in ("ragged", "pad")
    )
    assert ragged < pad
    budget = Budget(gib=((ragged + pad) / 2 / GIB,), utilization=1.0)
    options = compare(memory, settings, budget, 64, None)
    offered = [(o.degree, o.layout) for o in ways_out(options, settings)]
    assert offered[-1][1] == "ragged" and offered[-1][0] <= 2
    assert offered[0][1] == "pad" and offered[0][0] > 2


def test_degrees_that_cannot_be_planned_say_why():
    spec = spec_from_config({**QWEN_14B, "intermediate_size": 14436}, None)
    options = compare(memory_model(spec, "float16", 1), PlanSettings(), None, 64, None)
    assert len(options) == 16
    assert all("14336" in (option.why_not or "") for option in options)


@pytest.mark.parametrize("length", [0, -1, 1001])
def test_a_length_that_the_model_does_not_have(length, error_of):
    plan = make_plan(SPEC, PlanSettings())
    error = error_of(explain, SPEC, plan, Question(dtype="bfloat16", step_rows=16, length=length))
    assert error.code == "E-PLAN-LENGTH"
    assert "1000" in error.message
