"""Sampling: greedy, exact probabilities within a stated bound, and draws that can be repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.runtime.settings.engine import SamplingSettings
from isobit.runtime.worker.sampler import sample, uniform

LOGITS = np.array([1.5, -0.25, 3.0, 3.0, 0.5, -4.0, 2.25, 1.0], dtype=np.float32)
DRAWS = 20_000

# Hoeffding: a frequency over n independent draws is off by more than e with probability at most
# 2 exp(-2 n e^2). With this e that is below 1e-9 for each token.
BOUND = math.sqrt(math.log(2e9) / (2 * DRAWS))


def probabilities(temperature=1.0, top_k=0, top_p=1.0) -> dict[int, float]:
    """What the settings mean, written down without the sampler's shortcuts."""
    weight = {i: math.exp(float(x) / temperature) for i, x in enumerate(LOGITS)}
    kept = sorted(weight, key=lambda i: (-weight[i], i))[: top_k or None]
    total, mass, nucleus = math.fsum(weight[i] for i in kept), 0.0, []
    for i in kept:
        nucleus.append(i)
        mass += weight[i] / total
        if mass >= top_p:
            break
    total = math.fsum(weight[i] for i in nucleus)
    return {i: weight[i] / total for i in nucleus}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.4},
        {"temperature": 3.0},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_k": 99},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 2.0, "top_k": 6, "top_p": 0.7},
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(settings):
    sampling = SamplingSettings(seed=11, **settings)
    drawn = [sample(LOGITS, sampling, position) for position in range(DRAWS)]
    expected = probabilities(**settings)
    assert set(drawn) <= set(expected)
    for token, probability in expected.items():
        assert abs(drawn.count(token) / DRAWS - probability) < BOUND, token


@pytest.mark.parametrize("other", [{"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8}], ids=str)
def test_the_bound_can_tell_settings_apart(other):
    """Otherwise the test above would prove nothing."""
    plain, changed = probabilities(), probabilities(**other)
    assert max(abs(plain[t] - changed.get(t, 0.0)) for t in plain) > 2 * BOUND


@given(
    logits=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    position=st.integers(0, 1000),
)
def test_greedy_takes_the_lowest_id_among_equals(logits, position):
    token = sample(np.array(logits, dtype=np.float32), SamplingSettings(temperature=0), position)
    assert token == logits.index(max(logits))


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-9}], ids=str)
def test_one_token_left_is_the_greedy_one(settings):
    sampling = SamplingSettings(temperature=1.0, **settings)
    assert {sample(LOGITS, sampling, position) for position in range(200)} == {2}


def test_top_k_among_equals_keeps_the_lowest_ids():
    logits = np.zeros(6, dtype=np.float32)
    sampling = SamplingSettings(temperature=1.0, top_k=2)
    assert {sample(logits, sampling, position) for position in range(200)} == {0, 1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_a_tiny_temperature_draws_among_the_likeliest_alone(temperature):
    """Tokens 2 and 3 have equal logits; everything else has probability zero to the last bit."""
    sampling = SamplingSettings(temperature=temperature)
    assert {sample(LOGITS * 30, sampling, position) for position in range(200)} == {2, 3}


def test_huge_and_tiny_logits_are_no_trouble():
    logits = np.array([-3e38, 3e38, 0.0], dtype=np.float32)
    sampling = SamplingSettings(temperature=1.0)
    assert {sample(logits, sampling, position) for position in range(50)} == {1}


def test_a_draw_can_be_repeated_and_hangs_on_seed_and_position():
    def draws(seed):
        sampling = SamplingSettings(temperature=1.0, seed=seed)
        return [sample(LOGITS, sampling, position) for position in range(64)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert len(set(draws(5))) > 1


def test_draws_do_not_change_with_the_version():
    """A seed that people wrote down keeps its meaning."""
    assert uniform(0, 0) == 0.8336885269740499
    assert uniform(1, 2) == 0.7612170620886087


@given(seed=st.integers(-(1 << 63), 1 << 63), position=st.integers(0, 1 << 20))
def test_uniform_lies_between_zero_and_one(seed, position):
    assert 0 <= uniform(seed, position) < 1
