"""Steps sent before the one before them is known give what steps sent one by one give."""

from __future__ import annotations

import dataclasses

import pytest

from isobit.runtime.engine.engine import Engine
from isobit.runtime.engine.results import Batch
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.shard.plan.plan import PlanSettings

from ..support import INT4

PROMPTS = [[5, 6, 7], [900], [30, 31]]
SAMPLING = [SamplingSettings(max_tokens=14, temperature=1.1, seed=seed) for seed in (1, 2, 3)]
GREEDY = [SamplingSettings(max_tokens=5, ignore_eos=True)] * 3


def results(batch: Batch) -> list[tuple[list[int], str, str]]:
    return [(c.tokens, c.logits_digest, c.finish_reason) for c in batch.completions]


@pytest.fixture(scope="module")
def one_by_one():
    """`--check full` looks into every step and sends none ahead."""
    with Engine(INT4, EngineSettings(check="full"), LocalLauncher()) as engine:
        engine.spec = dataclasses.replace(engine.spec, stop_ids=())
        free = results(engine.generate(PROMPTS, SAMPLING))
        # Requests end in the middle: at a token that no request had before it.
        stop_ids = tuple(tokens[cut] for (tokens, _, _), cut in zip(free, (4, 6, 6), strict=True))
        engine.spec = dataclasses.replace(engine.spec, stop_ids=stop_ids)
        stopped = results(engine.generate(PROMPTS, SAMPLING))
        return stop_ids, stopped, results(engine.generate(PROMPTS, GREEDY))


# Beyond a page of the KV cache, and of different lengths.
LONG = [list(range(300, 360)), [900]]
LONG_GREEDY = [SamplingSettings(max_tokens=count, ignore_eos=True) for count in (70, 45)]


@pytest.fixture(scope="module")
def long_one_by_one():
    with Engine(INT4, EngineSettings(check="full"), LocalLauncher()) as engine:
        batch = engine.generate(LONG, LONG_GREEDY)
        return results(batch), batch.hidden_digests


@pytest.mark.parametrize("check", ["step", "off"])
@pytest.mark.parametrize("degree", [1, 2])
def test_steps_made_in_one_go_are_those_made_one_by_one(long_one_by_one, degree, check):
    settings = EngineSettings(plan=PlanSettings(degree=degree), check=check)
    with Engine(INT4, settings, LocalLauncher()) as engine:
        first, second = (engine.generate(LONG, LONG_GREEDY) for _ in range(2))
    expected, hidden = long_one_by_one
    for batch in (first, second):
        if check == "step":
            assert results(batch) == expected
            assert batch.hidden_digests == hidden
        else:
            assert [c.tokens for c in batch.completions] == [tokens for tokens, _, _ in expected]
        # One time for each token but the first of the longer request.
        assert len(batch.decode_s) == 69
        for times in batch.rank_times.values():
            assert 0 < times.kernels_s <= times.elapsed_s - times.collectives_s


@pytest.mark.parametrize("degree", [1, 2])
def test_stop_tokens_change_nothing_for_others_nor_for_what_follows(one_by_one, degree):
    stop_ids, stopped, greedy = one_by_one
    assert {reason for _, _, reason in stopped} == {"stop"}
    settings = EngineSettings(plan=PlanSettings(degree=degree))
    with Engine(INT4, settings, LocalLauncher()) as engine:
        engine.spec = dataclasses.replace(engine.spec, stop_ids=stop_ids)
        assert results(engine.generate(PROMPTS, SAMPLING)) == stopped
        # The step that was on its way when the last request stopped is not taken for a new one.
        assert results(engine.generate(PROMPTS, GREEDY)) == greedy
