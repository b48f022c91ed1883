"""Calibration statistics: in float64, and the same bits however samples were batched."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.shard.quantize.statistics import (
    Statistics,
    StatisticsSettings,
    load_statistics,
    merge_statistics,
    save_statistics,
)

from .calibration import inputs

K = 40
SAMPLES = [inputs(tokens, K, seed) for seed, tokens in enumerate([7, 1, 30, 12, 5, 64])]


ALL = range(len(SAMPLES))


def gathered(numbers=ALL, **changes) -> Statistics:
    statistics = Statistics(K, StatisticsSettings(**changes))
    for number in numbers:
        statistics.add(number, SAMPLES[number])
    return statistics


def same(a: Statistics, b: Statistics) -> bool:
    return (
        torch.equal(a.hessian(), b.hessian())
        and torch.equal(a.abs_mean(), b.abs_mean())
        and torch.equal(a.abs_max(), b.abs_max())
        and torch.equal(a.rows(), b.rows())
        and a.tokens == b.tokens
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_all_tokens(dtype):
    statistics, rows = gathered(dtype=dtype), torch.cat(SAMPLES).double()
    hessian = statistics.hessian()
    assert hessian.dtype == dtype
    assert torch.equal(hessian, hessian.T)
    wanted = 2 / len(rows) * rows.T @ rows
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (hessian - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert torch.allclose(statistics.abs_mean().double(), rows.abs().mean(0), rtol=1e-6)
    assert torch.equal(statistics.abs_max().double(), rows.abs().amax(0))
    assert statistics.input_scale() == pytest.approx(float(rows.abs().max()) / 127.5)
    assert statistics.tokens == len(rows)


def test_more_features_than_a_panel():
    rows = inputs(8, 2500)
    statistics = Statistics(2500)
    statistics.add(0, rows)
    wanted = rows.double().T @ rows.double() / 4
    assert (statistics.hessian() - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@given(cuts=st.sets(st.integers(1, len(SAMPLES) - 1)), seed=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_merging_does_not_depend_on_the_order_of_parts(cuts, seed):
    ends = [0, *sorted(cuts), len(SAMPLES)]
    parts = [gathered(range(*span)) for span in itertools.pairwise(ends)]
    merged = merge_statistics(parts)
    shuffled = parts[:]
    seed.shuffle(shuffled)
    assert same(merge_statistics(shuffled), merged)
    whole = gathered()
    assert torch.allclose(merged.hessian(), whole.hessian(), rtol=1e-4, atol=1e-3)
    assert torch.equal(merged.abs_max(), whole.abs_max())
    assert torch.equal(merged.rows(), whole.rows())
    assert merged.tokens == whole.tokens


def test_merging_leaves_its_parts_alone():
    first, second = gathered(range(3)), gathered(range(3, 6))
    before = first.hessian()
    merge_statistics([first, second])
    assert torch.equal(first.hessian(), before)


def test_a_file_holds_everything(tmp_path):
    path, whole = tmp_path / "statistics.safetensors", gathered(dtype=torch.float64)
    save_statistics(path, {"a": whole, "b.c": gathered(range(2))})
    read = load_statistics(path)
    assert list(read) == ["a", "b.c"]
    assert same(read["a"], whole)
    assert list(load_statistics(path, ["b.c"])) == ["b.c"]
    read["b.c"].add(2, SAMPLES[2])
    assert same(read["b.c"], gathered(range(3)))


def test_a_file_that_lacks_a_module(tmp_path, error_of):
    path = tmp_path / "statistics.safetensors"
    save_statistics(path, {"a": gathered()})
    error = error_of(load_statistics, path, ["a", "other"])
    assert error.code == "E-QUANT-STATISTICS"
    assert "other.products" in error.message


def test_rows_are_spread_over_a_sample():
    statistics = Statistics(1, StatisticsSettings(rows_per_sample=4))
    statistics.add(0, torch.arange(10.0)[:, None])
    statistics.add(1, torch.tensor([[100.0], [101.0]]))
    assert statistics.rows().flatten().tolist() == [0, 2, 5, 7, 100, 101]


@pytest.mark.parametrize("what", ["hessian", "abs_mean", "abs_max", "input_scale"])
def test_without_a_token_there_is_nothing_to_say(what, code_of):
    empty = Statistics(K)
    empty.add(0, torch.empty(0, K))
    assert code_of(getattr(empty, what)) == "E-QUANT-EMPTY"
    assert code_of(merge_statistics, []) == "E-QUANT-EMPTY"


def test_samples_come_once_and_in_order(code_of):
    statistics = gathered([0, 3])
    assert code_of(statistics.add, 3, SAMPLES[3]) == "E-QUANT-ORDER"
    assert code_of(statistics.add, 1, SAMPLES[1]) == "E-QUANT-ORDER"
    assert code_of(merge_statistics, [gathered([0, 2]), gathered([1])]) == "E-QUANT-ORDER"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_leave_the_sums_alone(value, error_of):
    statistics, bad = gathered([0]), SAMPLES[1].clone()
    bad[0, 7] = value
    error = error_of(statistics.add, 1, bad)
    assert error.code == "E-QUANT-NAN"
    assert "sample 1" in error.message
    assert same(statistics, gathered([0]))


def test_settings_that_cannot_work(code_of):
    assert code_of(StatisticsSettings, dtype=torch.float16) == "E-QUANT-SETTING"
    assert code_of(StatisticsSettings, rows_per_sample=-1) == "E-QUANT-SETTING"
