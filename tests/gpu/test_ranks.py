"""An engine over ranks on simulated cards: the same bits at every degree, through every part."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from isobit.runtime.completion import Batch
from isobit.runtime.config import EngineSettings, SamplingSettings
from isobit.runtime.engine import Engine
from isobit.shard.plan import PlanSettings

from .conftest import INTERPRETED
from .simulated_ranks import SimulatedLauncher
from .tiny import save

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="the cards are simulated")

PROMPTS = [[5, 17, 40], [61]]
# Greedy and drawn: drawing needs the logits on the CPU.
SAMPLING = [
    SamplingSettings(max_tokens=3, ignore_eos=True),
    SamplingSettings(max_tokens=3, ignore_eos=True, temperature=1.0, seed=3),
]


def run(
    model: Path, degree: int, launcher: SimulatedLauncher | None = None, **changes: Any
) -> Batch:
    settings = EngineSettings(
        plan=PlanSettings(degree=degree),
        device="cuda",
        kv_pages=2,
        max_step_rows=8,
        threads=1,
        **{"all_reduce": "gather", **changes},
    )
    with Engine(model, settings, launcher or SimulatedLauncher()) as engine:
        assert {rank["device"] for rank in engine.ranks} == {"cuda"}
        return engine.generate(PROMPTS, SAMPLING)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), "int4")


@pytest.fixture(scope="module")
def alone(model: Path) -> Batch:
    return run(model, 1)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_every_degree_has_the_bits_of_one_rank(degree: int, model: Path, alone: Batch) -> None:
    """Ranks compare what they loaded and every step on the way."""
    found = run(model, degree)
    assert found.completions == alone.completions
    assert found.hidden_digests == alone.hidden_digests


@pytest.mark.parametrize(
    ("degree", "trouble", "over"), [(2, "", "peer memory"), (3, "apart", "host memory")]
)
def test_sums_within_graphs_have_the_bits_of_one_rank(
    degree: int, trouble: str, over: str, model: Path, alone: Batch, tmp_path: Path, caplog
) -> None:
    """A graph starts the same kernels again and again: sequence numbers lie on the device."""
    with caplog.at_level(logging.INFO):
        found = run(model, degree, SimulatedLauncher(tmp_path, trouble), all_reduce="auto")
    assert found.completions == alone.completions
    assert found.hidden_digests == alone.hidden_digests
    (said,) = [text for text in caplog.messages if text.startswith("all-reduce: custom")]
    assert over in said and "self-test passed" in said


def test_lists_have_the_bits_of_graphs(model: Path, alone: Batch) -> None:
    assert run(model, 2, enforce_eager=True).completions == alone.completions
