"""Which width each product gets: by a budget in bits per weight, or by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from isobit.errors import InputError

WIDTHS = (4, 8, 16)
MOST_UNITS = 1 << 18
# Seventeen digits of a budget such as 4.125 must not lose its last bit.
SLACK = 1 + 1e-12


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """`bits` by module; `average` bits per weight with overhead; `cost` summed over modules."""

    bits: dict[str, int]
    average: float
    cost: float


@dataclass(frozen=True, kw_only=True)
class ProductWidth:
    """The width of one weight; `kl` in nats by width ("4"), empty where --keep fixed it.

    `kl` is that of the fused products to which the weight belongs, quantized together while all
    else is dense.
    """

    bits: int
    kl: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class MixedWidths:
    """Widths by module name under a `budget` in bits per weight.

    `average` counts codes, scales and zero points of the layers' products; `kl` is the sum over
    products, what is predicted for the model.
    """

    budget: float
    average: float
    kl: float
    products: dict[str, ProductWidth]


def widths_from_fields(fields: Mapping[str, Any]) -> MixedWidths:
    """Inverse of dataclasses.asdict; raises TypeError or KeyError for other fields."""
    products = {name: ProductWidth(**each) for name, each in fields["products"].items()}
    return MixedWidths(**{**fields, "products": products})


def assign_by_budget(
    costs: Mapping[str, Mapping[int, float]],
    stored: Mapping[str, Mapping[int, int]],
    sizes: Mapping[str, int],
    budget: float,
) -> Assignment:
    """Choose a width for each module: least total cost within `budget` bits per weight.

    `costs[module][bits]` is what a width costs, such as its output error; `stored[module][bits]`
    are the bits that all of the module takes at that width, with scales and zero points; `sizes`
    are numbers of weights. Exact, by dynamic programming over the bits spent. Where those have no
    useful common divisor, a choice is rounded up to 1 / 2^18 of the budget: the budget holds all
    the same. Raises InputError E-QUANT-BUDGET when it is too small, naming the least possible;
    E-QUANT-COST for costs that are absent or not finite.
    """
    _check_costs(costs, sizes)
    weights = sum(sizes[module] for module in costs)
    spent = {module: {bits: stored[module][bits] for bits in costs[module]} for module in costs}
    check_budget(spent, weights, budget)
    least = sum(min(choices.values()) for choices in spent.values())
    most = sum(max(choices.values()) for choices in spent.values())
    allowed = budget * weights * SLACK
    chosen = _knapsack(costs, spent, math.floor(min(allowed, most)) - least)
    return Assignment(
        bits=chosen,
        average=sum(spent[module][bits] for module, bits in chosen.items()) / max(weights, 1),
        cost=math.fsum(costs[module][bits] for module, bits in chosen.items()),
    )


def check_budget(stored: Mapping[str, Mapping[int, int]], weights: int, budget: float) -> None:
    """Raise InputError E-QUANT-BUDGET for a budget below the least bits of all modules together."""
    least = sum(min(choices.values()) for choices in stored.values())
    if not budget * weights * SLACK >= least:
        raise InputError(
            "E-QUANT-BUDGET",
            f"--budget {budget:g}: the layers' {weights} weights need at least "
            f"{math.ceil(least / weights * 1000) / 1000:g} bits each, scales and what --keep "
            "fixes included",
        )


def assign_by_patterns(
    modules: Sequence[str], patterns: Sequence[str], default: int
) -> dict[str, int]:
    """Give modules the width of the last pattern that matches, such as "layers.0.*=8".

    A pattern is a glob for a module's name, with or without its leading "model."; what none
    matches gets `default`. Raises InputError E-QUANT-PATTERN naming every pattern that is malformed
    or matches nothing.
    """
    chosen, wrong = dict.fromkeys(modules, default), []
    for pattern in patterns:
        glob, _, width = pattern.rpartition("=")
        if not glob or width not in map(str, WIDTHS):
            wrong.append(f"{pattern!r}: expected PATTERN=BITS with BITS one of 4, 8, 16")
            continue
        matched = [
            module
            for module in modules
            if fnmatchcase(module, glob) or fnmatchcase(module.removeprefix("model."), glob)
        ]
        if not matched:
            wrong.append(f"{pattern!r}: matches none of {len(modules)} modules")
        chosen.update(dict.fromkeys(matched, int(width)))
    if wrong:
        example = f". A module's name is {modules[0]}" if modules else ""
        raise InputError("E-QUANT-PATTERN", "\n  ".join(wrong) + example)
    return chosen


def _check_costs(costs: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int]) -> None:
    wrong = [f"{module}: no size" for module in costs if module not in sizes]
    for module, choices in costs.items():
        if not choices or any(bits not in WIDTHS for bits in choices):
            wrong.append(f"{module}: widths {sorted(choices)}, expected some of 4, 8, 16")
        wrong += [
            f"{module}: cost {cost} at {bits} bits"
            for bits, cost in choices.items()
            if not math.isfinite(cost)
        ]
    if wrong:
        raise InputError("E-QUANT-COST", "\n  ".join(wrong))


def _knapsack(
    costs: Mapping[str, Mapping[int, float]],
    spent: Mapping[str, Mapping[int, int]],
    room: int,
) -> dict[str, int]:
    """Multiple-choice knapsack with `room` bits beyond the smallest choice of every module.

    Of equal costs the one with the fewest bits is taken.
    """
    least = {module: min(choices.values()) for module, choices in spent.items()}
    step = math.gcd(*(b - least[module] for module, each in spent.items() for b in each.values()))
    step = step or 1
    unit = step * max(1, -(-room // (step * MOST_UNITS)))
    units = room // unit
    best = torch.zeros(units + 1, dtype=torch.float64)
    picks = []
    for module, choices in costs.items():
        options = sorted(choices, key=lambda bits, module=module: spent[module][bits])
        added = [-(-(spent[module][bits] - least[module]) // unit) for bits in options]
        table = torch.full((len(options), units + 1), float("inf"), dtype=torch.float64)
        for row, bits, more in zip(table, options, added, strict=True):
            if more <= units:
                row[more:] = best[: units + 1 - more] + choices[bits]
        best, index = table.min(dim=0)
        picks.append((module, options, added, index.to(torch.uint8)))
    at, chosen = int(best.argmin()), {}
    for module, options, added, index in reversed(picks):
        pick = int(index[at])
        chosen[module] = options[pick]
        at -= added[pick]
    return {module: chosen[module] for module in costs}
