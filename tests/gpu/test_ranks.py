"""An engine over ranks on simulated cards: the same bits at every degree, through every part."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from isobit.runtime.engine.engine import Engine
from isobit.runtime.engine.results import Batch
from isobit.runtime.ranks.launcher import LocalLauncher
from isobit.runtime.settings.engine import EngineSettings, SamplingSettings
from isobit.shard.plan.plan import PlanSettings

from .conftest import INTERPRETED
from .simulated_ranks import SimulatedLauncher
from .tiny import save

simulated = pytest.mark.skipif(not INTERPRETED, reason="what goes wrong is simulated")

PROMPTS = [[5, 17, 40], [61]]
# Greedy and drawn: drawing needs the logits on the CPU.
SAMPLING = [
    SamplingSettings(max_tokens=3, ignore_eos=True),
    SamplingSettings(max_tokens=3, ignore_eos=True, temperature=1.0, seed=3),
]


def run(
    model: Path, degree: int, launcher: SimulatedLauncher | None = None, **changes: Any
) -> Batch:
    """On real cards all ranks share the first, over which NCCL does not gather."""
    if INTERPRETED:
        launcher, device = launcher or SimulatedLauncher(), "cuda"
        changes = {"all_reduce": "gather", **changes}
    else:
        device = ",".join(["cuda:0"] * degree)
    settings = EngineSettings(
        plan=PlanSettings(degree=degree),
        device=device,
        kv_pages=2,
        max_step_rows=8,
        threads=1,
        **changes,
    )
    with Engine(model, settings, launcher or LocalLauncher()) as engine:
        assert {rank["device"] for rank in engine.ranks} == set(device.split(","))
        assert all(rank["kernels_compiled"] > 10 for rank in engine.ranks)
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


@simulated
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


@simulated
def test_ranks_load_each_at_its_own_pace(model: Path, alone: Batch) -> None:
    """What ranks tell each other of their cards after loading waits longer than a collective."""
    launcher = SimulatedLauncher(slow_load_s=3)
    found = run(model, 2, launcher, collective_timeout_s=1.0)
    assert found.completions == alone.completions


def test_lists_have_the_bits_of_graphs(model: Path, alone: Batch) -> None:
    assert run(model, 2, enforce_eager=True).completions == alone.completions
