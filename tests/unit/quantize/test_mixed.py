"""Mixed widths: by brute force on small models, and patterns that name their mistakes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.shard.quantize.mixed import assign_by_budget, assign_by_patterns

COSTS = st.dictionaries(st.sampled_from([4, 8, 16]), st.floats(0, 100, allow_nan=False), min_size=1)
MODELS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(COSTS, st.integers(1, 50)), min_size=1
)
TEN = {"a": {4: 40, 8: 80, 16: 160}}
OVERHEADS = st.sampled_from([{}, {4: 0.125, 8: 0.125}, {4: 0.15625, 8: 0.1}])


def stored(costs, sizes, overhead=None) -> dict[str, dict[int, int]]:
    """Bits of each module at each width; `overhead` are bits per weight for scales."""
    extra = overhead or {}
    return {
        name: {bits: math.ceil(sizes[name] * (bits + extra.get(bits, 0))) for bits in each}
        for name, each in costs.items()
        if name in sizes
    }


def brute(costs, sizes, budget, overhead) -> float | None:
    """The least cost of all assignments within budget; None when there is none."""
    names, best = list(costs), None
    allowed = budget * sum(sizes.values()) * (1 + 1e-12)
    for widths in itertools.product(*(costs[name] for name in names)):
        chosen = list(zip(names, widths, strict=True))
        if sum(math.ceil(sizes[n] * (b + overhead.get(b, 0.0))) for n, b in chosen) <= allowed:
            cost = math.fsum(costs[n][b] for n, b in chosen)
            best = cost if best is None else min(best, cost)
    return best


@settings(deadline=None, max_examples=200)
@given(model=MODELS, budget=st.floats(3.5, 17), overhead=OVERHEADS)
def test_the_cost_is_the_least_there_is(model, budget, overhead):
    costs = {name: each for name, (each, _) in model.items()}
    sizes = {name: size for name, (_, size) in model.items()}
    bits = stored(costs, sizes, overhead)
    best = brute(costs, sizes, budget, overhead)
    if best is None:
        with pytest.raises(Exception, match="E-QUANT-BUDGET"):
            assign_by_budget(costs, bits, sizes, budget)
        return
    found = assign_by_budget(costs, bits, sizes, budget)
    assert found.cost == pytest.approx(best, abs=1e-9)
    assert found.cost == math.fsum(costs[name][bits] for name, bits in found.bits.items())
    spent = sum(
        math.ceil(sizes[n] * (b + overhead.get(b, 0.0))) for n, b in found.bits.items()
    ) / sum(sizes.values())
    assert found.average == pytest.approx(spent)
    assert found.average <= budget * (1 + 1e-9)
    assert list(found.bits) == list(costs)


@settings(deadline=None, max_examples=50)
@given(model=MODELS, budgets=st.tuples(st.floats(17, 18), st.floats(4, 17), st.floats(4, 17)))
def test_a_larger_budget_never_costs_more(model, budgets):
    costs = {name: {4: 100.0, **each} for name, (each, _) in model.items()}
    sizes = {name: size for name, (_, size) in model.items()}
    found = [
        assign_by_budget(costs, stored(costs, sizes), sizes, budget).cost
        for budget in sorted(budgets)
    ]
    assert found == sorted(found, reverse=True)


def test_sizes_of_a_large_model_and_odd_ones():
    sizes = {f"m{i}": 67_108_864 + 1009 * i for i in range(40)}
    costs = {name: {4: 1 + i % 7, 8: 0.1, 16: 0.0} for i, name in enumerate(sizes)}
    found = assign_by_budget(costs, stored(costs, sizes), sizes, 5.01)
    assert found.average <= 5.01
    eight = [name for name, bits in found.bits.items() if bits == 8]
    assert sorted(eight) == sorted(name for name in costs if costs[name][4] >= 6)


def test_nothing_is_spent_in_vain():
    found = assign_by_budget({"a": {4: 1.0, 8: 1.0, 16: 1.0}}, TEN, {"a": 10}, 16)
    assert found.bits == {"a": 4}
    assert assign_by_budget({"a": {4: 1.0, 8: 0.0}}, TEN, {"a": 10}, math.inf).bits == {"a": 8}


def test_a_budget_that_is_too_small_names_the_least(error_of):
    error = error_of(assign_by_budget, {"a": {4: 1.0}}, {"a": {4: 4125}}, {"a": 1000}, 4.0)
    assert error.code == "E-QUANT-BUDGET"
    assert "at least 4.125" in error.message
    error = error_of(assign_by_budget, {"a": {4: 1.0}}, TEN, {"a": 10}, math.nan)
    assert error.code == "E-QUANT-BUDGET"


def test_costs_that_are_missing_are_named_together(error_of):
    costs = {"a": {4: math.nan}, "b": {}, "c": {3: 1.0}, "d": {4: 1.0}}
    sizes = {"a": 1, "b": 1, "c": 1}
    error = error_of(assign_by_budget, costs, stored(costs, sizes), sizes, 8)
    assert error.code == "E-QUANT-COST"
    for name in "abcd":
        assert f"{name}: " in error.message


MODULES = [
    f"model.layers.{layer}.{name}"
    for layer in (0, 1, 10)
    for name in ("self_attn.q_proj", "mlp.down_proj")
]


def test_the_last_pattern_that_matches_wins():
    found = assign_by_patterns(
        MODULES, ["layers.1.*=8", "*.down_proj=16", "model.layers.10.mlp.*=4"], 4
    )
    assert found == {
        "model.layers.0.self_attn.q_proj": 4,
        "model.layers.0.mlp.down_proj": 16,
        "model.layers.1.self_attn.q_proj": 8,
        "model.layers.1.mlp.down_proj": 16,
        "model.layers.10.self_attn.q_proj": 4,
        "model.layers.10.mlp.down_proj": 4,
    }


def test_all_wrong_patterns_are_named(error_of):
    patterns = ["layers.0.*=8", "layers.2.*=8", "*", "*=5", "*.down=16"]
    error = error_of(assign_by_patterns, MODULES, patterns, 4)
    assert error.code == "E-QUANT-PATTERN"
    for pattern in patterns[1:]:
        assert repr(pattern) in error.message
    assert "'layers.0.*=8'" not in error.message
    assert MODULES[0] in error.message
