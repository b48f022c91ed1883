"""The promise: the same bits at every degree, in any batch, however a prompt is cut."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import pytest

from isobit.runtime.engine.engine import Batch, Engine
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.runtime.worker.forked_launcher import ForkedLauncher
from isobit.shard.plan.plan import PlanSettings

from ..support import DENSE, INT4

DEGREES = (1, 2, 3, 4, 8)
LENGTHS = (1, 50, 51, 300)
NEW_TOKENS = 6
MODELS = {"int4": INT4, "dense": DENSE}
PROMPTS = [[(7 * i * i + 3 * length + i) % 1990 for i in range(length)] for length in LENGTHS]
BATCH = [*PROMPTS, [11, 12, 13, 14, 15, 16, 17]]


def settings(degree: int, layout: str, **changes) -> EngineSettings:
    plan = PlanSettings(degree=degree, layout=layout)  # type: ignore[arg-type]
    return EngineSettings(plan=plan, kv_pages=64, **changes)


def run(engine: Engine, prompts: list[list[int]]) -> Batch:
    sampling = SamplingSettings(max_tokens=NEW_TOKENS, ignore_eos=True)
    return engine.generate(prompts, [sampling] * len(prompts))


@cache
def outcome(model: Path, layout: str, degree: int) -> dict[str, Batch]:
    """Every prompt alone, and five together, at one degree."""
    with Engine(model, settings(degree, layout), ForkedLauncher()) as engine:
        batches = {str(len(prompt)): run(engine, [prompt]) for prompt in PROMPTS}
        batches["batch"] = run(engine, BATCH)
    return batches


@pytest.mark.parametrize("layout", ["pad", "ragged"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("degree", DEGREES[1:])
def test_degrees_agree_bit_for_bit(model, layout, degree):
    one, many = (outcome(MODELS[model], layout, d) for d in (1, degree))
    for name in one:
        assert many[name].hidden_digests == one[name].hidden_digests, name
        assert many[name].completions == one[name].completions, name


@pytest.mark.parametrize("layout", ["pad", "ragged"])
@pytest.mark.parametrize("model", MODELS)
def test_a_batch_changes_no_bit_of_a_row(model, layout):
    batches = outcome(MODELS[model], layout, 2)
    for index, length in enumerate(LENGTHS):
        alone, together = batches[str(length)], batches["batch"]
        assert together.completions[index] == alone.completions[0], length


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_cutting_a_prompt_changes_no_bit(rows):
    whole = outcome(INT4, "pad", 1)["300"]
    with Engine(INT4, settings(1, "pad", max_step_rows=rows), ForkedLauncher()) as engine:
        assert run(engine, [PROMPTS[3]]).completions == whole.completions


def test_threads_change_no_bit():
    one = outcome(INT4, "pad", 1)
    with Engine(INT4, settings(1, "pad", threads=2), ForkedLauncher()) as engine:
        assert run(engine, BATCH).completions == one["batch"].completions
    with Engine(INT4, settings(1, "pad", threads=1), ForkedLauncher()) as engine:
        assert run(engine, BATCH).completions == one["batch"].completions


# Degree, threads, longest piece of a prompt.
MIXES = ((1, 2, 7), (1, 1, 1), (2, 1, 64), (3, 2, 7), (4, 1, 512), (8, 2, 64))


@cache
def sixteen() -> tuple[list[list[int]], Batch]:
    """A batch of 16 prompts of 1 to 61 tokens, whole, on one thread."""
    prompts = [[(i * i + 5 * n) % 1990 for i in range(1 + 4 * n)] for n in range(16)]
    with Engine(INT4, settings(1, "pad", threads=1), ForkedLauncher()) as engine:
        return prompts, run(engine, prompts)


@pytest.mark.parametrize(("degree", "threads", "rows"), MIXES)
def test_degree_threads_and_pieces_together_change_no_bit(degree, threads, rows):
    prompts, wanted = sixteen()
    mixed = settings(degree, "pad", threads=threads, max_step_rows=rows)
    with Engine(INT4, mixed, ForkedLauncher()) as engine:
        assert run(engine, prompts).completions == wanted.completions


@pytest.mark.parametrize("degree", [2, 3, 4, 5, 8])
def test_custom_sums_have_the_bits_of_gathered_ones(degree):
    """Steps of 1, 50 and 300 rows: one-shot, two-shot and in pieces."""
    one = outcome(INT4, "pad", 1)
    for mode in ("custom", "gather"):
        with Engine(INT4, settings(degree, "pad", all_reduce=mode), ForkedLauncher()) as engine:
            assert engine.ranks[0]["all_reduce"]["name"] == mode
            assert run(engine, BATCH).completions == one["batch"].completions


def test_the_library_says_that_it_promises_nothing(caplog):
    with (
        caplog.at_level(logging.WARNING),
        Engine(INT4, settings(3, "pad", all_reduce="library"), ForkedLauncher()) as engine,
    ):
        assert engine.ranks[0]["all_reduce"]["invariant"] is False
        assert run(engine, [PROMPTS[1]]).completions[0].finish_reason == "length"
    assert "the library adds in an order of its own" in caplog.text


def test_a_draw_depends_on_seed_and_position_alone():
    sampling = SamplingSettings(max_tokens=8, temperature=0.9, top_p=0.95, seed=5, ignore_eos=True)
    other = SamplingSettings(max_tokens=8, temperature=0.9, top_p=0.95, seed=6, ignore_eos=True)
    with Engine(INT4, settings(2, "pad"), ForkedLauncher()) as engine:
        alone = engine.generate([PROMPTS[1]], [sampling]).completions[0]
        batch = engine.generate([PROMPTS[0], PROMPTS[1]], [other, sampling]).completions
        different = engine.generate([PROMPTS[1]], [other]).completions[0]
    assert batch[1] == alone
    assert different.tokens != alone.tokens


def test_a_rank_reads_only_its_own_bytes():
    with Engine(INT4, settings(4, "ragged"), ForkedLauncher()) as engine:
        read = [rank["bytes_read"] for rank in engine.ranks]
    whole = (INT4 / "model.safetensors").stat().st_size
    assert max(read) < 0.45 * whole
