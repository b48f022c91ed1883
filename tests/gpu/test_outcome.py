"""What a step says of itself: the digests and tokens of the ops, with one wait for the device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isobit.kernels.backend import cuda
from isobit.kernels.gpu.arena import Arena
from isobit.kernels.gpu.device import Gpu
from isobit.kernels.gpu.readout import Readout, Spoken
from isobit.kernels.gpu.shape import Shape, padded
from isobit.kernels.step.buffer import Buffer
from isobit.runtime.engine.preflight import prepare
from isobit.runtime.settings.engine import EngineSettings, RankJob, told_to_ranks
from isobit.runtime.worker import worker as worker_module
from isobit.runtime.worker.worker import Worker

from .cards import CountingCard
from .tiny import decoder, save, step

pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
DRAWN = GREEDY | {"temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models"), "int4")


def digests_of(tensors: list[torch.Tensor]) -> list[int]:
    return [cuda().digest(tensor.contiguous(), 0) for tensor in tensors]


@pytest.mark.parametrize("sampled", [[0, 1, 2], [2], []])
def test_a_step_says_what_the_ops_say_of_its_tensors(sampled: list[int], model: Path) -> None:
    """Of 3 rows padded to 4; the ops take one tensor, or one row, at a time."""
    card = CountingCard()
    rank = decoder(model, card)
    hidden, logits = rank.forward(step((0, 0, [5, 17]), (1, 0, [40]), sampled=sampled))
    tokens, found = rank.outcome(hidden, logits).read(True)
    assert tokens == (cuda().greatest(logits.contiguous()) if sampled else [])
    assert found == digests_of([hidden, *rank.normed(), *logits])
    assert card.waits == 1 and card.downloads == 1


def test_rows_that_are_not_finite_and_equal_values(device: str) -> None:
    """In rows that take two blocks, beside one that fills up the shape."""
    logits = torch.randn(7, 5001)
    logits[1, 5000], logits[2, [3, 5000]], logits[3, 17] = 99.0, 50.0, torch.nan
    logits[4, 4998], logits[5] = -torch.inf, -1.0
    logits[6] = torch.tensor([-0.0, 0.0, -0.0]).repeat(1667)
    wanted = [int(logits[0].argmax()), 5000, 3, -1, -1, 0, 0]
    tensors = {
        "hidden": torch.randn(8, 100), "last": torch.randn(8, 100).bfloat16(),
        "logits": torch.cat([logits, torch.full((1, 5001), torch.inf)]),
    }  # fmt: skip
    buffers = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        buffer = Buffer(number, 1, tensor.shape[1], tensor.dtype, name != "hidden")
        buffer.place(tensor.flatten().to(device), 8)
        buffers[name] = buffer
    card, normed = CountingCard(), torch.randn(4, 100).bfloat16().to(device)
    readout = Readout(card, Spoken(normed=normed, **buffers), 8)
    at: Any = SimpleNamespace(
        shape=Shape(rows=8, sampled=8, chunks=8, columns=16, stretches=1, decode=False),
        rows=lambda buffer: buffer.rows(8),
        memory=SimpleNamespace(counts=torch.tensor([5, 7], device=device)),
        arena=Arena(card.device),
    )
    for launch in readout.items(at):
        launch.run()
    rows = buffers["logits"].rows(8)[:7]
    tokens, found = readout.read(5, 7, 8, rows)
    assert tokens == wanted
    parts = [buffers["hidden"].rows(8)[:5], normed, buffers["last"].rows(8)[:7], *rows]
    assert found == digests_of(parts)
    assert torch.equal(readout.host_logits(7).view(torch.int32), logits.view(torch.int32))


def rank_of(model: Path, card: CountingCard, monkeypatch: Any, batch: int, eager: bool) -> Worker:
    settings = EngineSettings(
        kv_pages=batch, max_step_rows=batch, device="cuda", enforce_eager=eager, threads=1
    )
    monkeypatch.setattr(
        worker_module,
        "open_device",
        lambda _, *, most_rows, eager: Gpu(card, most_rows=most_rows, eager=eager),
    )
    _, plan = prepare(model, settings)
    return Worker(
        RankJob(
            model=model, rank=0, plan=plan.to_dict(), hosts=["here"], rendezvous="", device="cuda",
            **told_to_ranks(settings),
        )
    )  # fmt: skip


def message(number: int, batch: int, sampling: dict[str, Any]) -> dict[str, Any]:
    rows = list(range(batch))
    return {
        "kind": "steps", "step": number, "count": 1, "owner": rows, "sampled": rows,
        "tokens": [(7 * row + number) % 60 for row in rows], "positions": [number - 1] * batch,
        "tables": [[row] for row in rows], "sampling": [sampling] * batch,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "eager", "sampling"),
    [(1, False, GREEDY), (1, True, DRAWN), (16, False, DRAWN), (64, False, GREEDY)],
)
def test_the_host_waits_once_a_step_at_any_batch(
    batch: int, eager: bool, sampling: dict[str, Any], model: Path, monkeypatch: Any
) -> None:
    """With --check step, drawn or greedy: first as a list, then as a graph."""
    card = CountingCard()
    rank = rank_of(model, card, monkeypatch, batch, eager)
    outcomes = []
    for number in (1, 2, 3) if batch == 1 else (1, 2):
        before = card.waits
        (answer,) = rank.answers(message(number, batch, sampling))
        assert card.waits - before == 1
        assert len(answer["tokens"]) == len(answer["logits_digests"]) == batch
        outcomes.append(rank._outcome)
    assert all(outcome is outcomes[0] for outcome in outcomes)
    assert card.graphs == (0 if eager else 1) and padded(batch) == batch
    rank.close()
