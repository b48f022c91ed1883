"""Loops in long text, and the choice of the likeliest continuation."""

from __future__ import annotations

import math

import pytest

from isobit.launch.evaluation.evaluation import NOTHING, ModelRun, text_failures
from isobit.launch.evaluation.tasks import Choice, Task, accuracy, chosen
from isobit.runtime.evaluation.score_samples import Scores
from isobit.runtime.evaluation.stability import Repetition, first_repetition


def scores(log_probabilities: list[float]) -> Scores:
    count = len(log_probabilities)
    return Scores(
        log_probabilities=log_probabilities,
        tokens=[1] * count,
        finite=[not math.isnan(value) for value in log_probabilities],
        divergences=[],
    )


@pytest.mark.parametrize("period", range(1, 9))
def test_sixteen_times_are_a_loop_and_one_token_less_is_none(period):
    before, loop = [100, 101], list(range(period))
    tokens = before + loop * 16
    assert first_repetition(tokens) == Repetition(index=2, period=period, tokens=loop)
    assert first_repetition(tokens[:-1]) is None


def test_what_is_no_loop():
    assert first_repetition([]) is None
    assert first_repetition(list(range(9)) * 40) is None
    assert first_repetition(([5] * 15 + [6]) * 3) is None


@pytest.mark.parametrize(
    ("tokens", "error", "failures"),
    [
        ([0] * 16, None, ["long text: token 0 over and over from token 0 on"]),
        ([7] * 16, None, []),
        ([0] * 15, "step 3: NaN", ["long text: step 3: NaN"]),
    ],
)
def test_zeros_and_nan_fail_and_other_loops_are_told(tokens, error, failures):
    run = ModelRun(
        scores=NOTHING,
        greedy=[],
        choices=None,
        stress=tokens,
        stress_error=error,
        turns=[],
        followed=None,
    )
    assert text_failures(run) == failures


def test_the_choice_of_greatest_sum_over_its_own_tokens():
    """The prompt's tokens do not count, and a choice is not divided by its length."""
    choices = [
        Choice(task=0, ids=[1, 2, 3, 4], first=2),
        Choice(task=0, ids=[1, 2, 5], first=2),
        Choice(task=1, ids=[1, 2], first=1),
        Choice(task=1, ids=[1, 3], first=1),
    ]
    found = chosen(choices, scores([-0.0, -1.0, -1.0, -9.0, -1.5, -3.0, -2.0]))
    assert found == [1, 1]
    tasks = [Task(prompt="", choices=["a", "b"], answer=answer) for answer in (1, 0)]
    assert accuracy(tasks, found) == 0.5
    unknown = chosen(choices, scores([0.0, math.nan, 0.0, 0.0, 0.0, -3.0, -2.0]))
    assert unknown == [None, 1]
