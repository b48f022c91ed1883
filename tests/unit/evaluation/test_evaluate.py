"""The arithmetic of an evaluation against torch, its verdict, and the cutting of text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from isobit.errors import InputError
from isobit.runtime.evaluation.evaluate import (
    Gates,
    Place,
    evaluate,
    first_divergence,
    percentile,
    perplexity,
    place_of,
    report,
)
from isobit.runtime.evaluation.logits_file import LogitsFile
from isobit.runtime.evaluation.score import divergence, log_probabilities, score_rows
from isobit.runtime.evaluation.score_samples import Scores

# Both sides are float64 and add a few hundred terms in orders of their own.
FLOAT64 = {"rtol": 1e-12, "atol": 1e-13}
SAMPLES = [[5, 6, 7], [8, 9]]


def rows(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(4, 300, generator=torch.Generator().manual_seed(seed))


def scores(log_probabilities, divergences=(), finite=None, tokens=(1, 2, 3)) -> Scores:
    return Scores(
        log_probabilities=list(log_probabilities),
        tokens=list(tokens),
        finite=[True] * 3 if finite is None else finite,
        divergences=list(divergences),
    )


@pytest.mark.parametrize("scale", [0.01, 3.0, 1e4])
def test_log_softmax_as_torch(scale):
    logits = rows(0, scale)
    theirs = torch.log_softmax(logits.double(), dim=-1)
    ours = np.stack([log_probabilities(row) for row in logits.numpy()])
    assert ours.dtype == np.float64
    torch.testing.assert_close(torch.from_numpy(ours), theirs, **FLOAT64)


def test_divergence_as_torch():
    reference, model = (torch.log_softmax(rows(seed).double(), dim=-1) for seed in (0, 1))
    theirs = torch.nn.functional.kl_div(model, reference, reduction="none", log_target=True).sum(-1)
    ours = [divergence(p, q) for p, q in zip(reference.numpy(), model.numpy(), strict=True)]
    torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs, **FLOAT64)
    assert divergence(reference[0].numpy(), reference[0].numpy()) == 0.0


def test_perplexity_as_torch():
    logits, targets = rows(0), torch.tensor([3, 299, 0, 17])
    theirs = torch.nn.functional.cross_entropy(logits.double(), targets).exp()
    taken = [log_probabilities(row)[t] for row, t in zip(logits.numpy(), targets, strict=True)]
    assert perplexity(taken) == pytest.approx(float(theirs), rel=1e-12)
    assert perplexity([-1e4]) == math.inf


@pytest.mark.parametrize("count", [1, 2, 100, 257])
def test_percentile_as_torch(count):
    values = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert percentile(values.tolist(), 0.99) == pytest.approx(float(values.quantile(0.99)), 1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs", "index"),
    [([1, 2], [1, 2], None), ([1, 2], [3, 2], 0), ([1, 2], [1, 3], 1), ([1], [1, 2], 1)],
)
def test_the_first_token_that_differs(ours, theirs, index):
    assert first_divergence(ours, theirs) == index


def test_places_count_scored_positions():
    assert [place_of(SAMPLES, i) for i in range(3)] == [
        Place(sample=0, position=0),
        Place(sample=0, position=1),
        Place(sample=1, position=0),
    ]


def test_a_row_is_scored_alike_with_others_and_alone(tmp_path):
    """And a row against itself, through the file, diverges by exactly nothing."""
    logits, following, places = rows(3).numpy(), [1, 2, 3, 4], [2, 0, 3, 1]
    file = LogitsFile(path=tmp_path / "logits", vocabulary=300)
    file.reserve(4)
    assert file.path.stat().st_mode & 0o777 == 0o600
    score = {"next": following, "rows": places, "path": str(file.path)}
    tokens = logits.argmax(-1).tolist()
    written = score_rows(logits, tokens, {**score, "mode": "write"})
    read = score_rows(logits, tokens, {**score, "mode": "read"})
    assert read["log_probabilities"] == written["log_probabilities"]
    assert read["divergences"] == [0.0] * 4
    for i in range(4):
        alone = {"next": [following[i]], "rows": [places[i]], "path": str(file.path)}
        one = score_rows(logits[i : i + 1], [tokens[i]], {**alone, "mode": "read"})
        assert one["log_probabilities"] == [written["log_probabilities"][i]]


def test_a_disk_without_room_is_named_with_numbers(tmp_path):
    file = LogitsFile(path=tmp_path / "logits", vocabulary=1 << 20)
    with pytest.raises(InputError, match=f"{4 << 60} bytes") as refused:
        file.reserve(1 << 40)
    assert refused.value.code == "E-EVAL-DISK"
    assert not file.path.exists()


def test_rows_that_are_not_finite_fail_without_a_gate():
    ours = scores([-1.0, math.nan, -1.0], finite=[True, False, True])
    outcome = evaluate(SAMPLES, ours, None, Gates())
    assert (outcome.passed, outcome.not_finite) == (False, [Place(sample=0, position=1)])
    assert report(outcome, SAMPLES)["perplexity"] is None


@pytest.mark.parametrize(
    ("gates", "passed"),
    [
        (Gates(), None),
        (Gates(kl=0.25), True),
        (Gates(kl=0.2), False),
        (Gates(perplexity_increase=0.5), False),
        (Gates(perplexity_increase=0.7, kl=0.25), True),
        (Gates(perplexity_increase=0.7, kl=0.2), False),
    ],
)
def test_gates(gates, passed):
    """Perplexity exp(1.5) after exp(1): an increase of 0.6487. The mean divergence is 0.25."""
    ours = scores([-1.5] * 3, [0.125, 0.5, 0.125], tokens=(1, 2, 4))
    outcome = evaluate(SAMPLES, ours, scores([-1.0] * 3), gates)
    result = report(outcome, SAMPLES)
    assert result["perplexity_increase"] == pytest.approx(math.exp(0.5) - 1)
    assert result["kl_worst"] == {
        "value": 0.5,
        "sample": 0,
        "position": 1,
        "token": 6,
        "next_token": 7,
    }
    assert result["top1_agreement"] == pytest.approx(2 / 3)
    assert result["passed"] is passed
    assert bool(result["failures"]) is (passed is False)
