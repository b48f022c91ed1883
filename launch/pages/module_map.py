"""Tables of layers by modules, coloured by one number of each module, with charts by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .charts import Chart, Series, axis_for, line_chart

Module = Mapping[str, Any]
"""A module as quantization_report.json has it."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.(?:\w+\.)*(\w+)")
# The deepest shade has to leave its number readable.
DEEPEST = 0.7
ORDER = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a module: what it is called, how it is written, which end of it is bad.

    `beside` is another number that charts show with it, under `beside_name`.
    """

    key: str
    title: str
    note: str
    text: Callable[[float], str]
    unit: str = ""
    more_is_worse: bool = True
    logarithmic: bool = False
    beside: str | None = None
    beside_name: str = ""


def percent(value: float) -> str:
    """0.00256 -> "0.256"."""
    return f"{100 * value:.3g}"


MEASURES = (
    Measure(
        key="layer_error",
        title="Error in the output of each linear layer",
        note="The share of error in the power of the output, on the inputs of calibration, in "
        "percent. Redder is worse.",
        text=percent,
        unit=" %",
        logarithmic=True,
        beside="nearest_error",
        beside_name="rounded to nearest",
    ),
    Measure(
        key="sqnr_db",
        title="Signal to quantization noise of each weight",
        note="In decibels; 6 dB are one bit. Redder is worse. A method that looks at outputs may "
        "give up some of it on purpose.",
        text=lambda value: f"{value:.1f}",
        more_is_worse=False,
    ),
    Measure(
        key="clipped",
        title="Share of weights that were clipped",
        note="In percent: weights outside the range of their group's codes, which take the last.",
        text=percent,
        unit=" %",
    ),
    Measure(
        key="bits",
        title="Bits",
        note="The width of each weight, redder when wider; a dash stayed as it was.",
        text=lambda value: f"{value:.0f}",
    ),
)


def module_maps(modules: Mapping[str, Module]) -> list[dict[str, Any]]:
    """What the template shows of each measure that modules have; the first one gets charts."""
    shown = [measure for measure in MEASURES if _worth_showing(measure, modules)]
    table = _table(modules)
    return [_map(measure, table, charted=index == 0) for index, measure in enumerate(shown)]


def _worth_showing(measure: Measure, modules: Mapping[str, Module]) -> bool:
    """Whether modules have a number, and not all the same one."""
    values = {module[measure.key] for module in modules.values() if measure.key in module}
    return len(values) > 1


def _table(modules: Mapping[str, Module]) -> dict[int, dict[str, Module]]:
    """Modules by layer and short name, both in the order of the model."""
    table: dict[int, dict[str, Module]] = {}
    for name, module in modules.items():
        found = _LAYER.fullmatch(name)
        assert found is not None, name
        table.setdefault(int(found[1]), {})[found[2].removesuffix("_proj")] = module
    return {layer: table[layer] for layer in sorted(table)}


def _map(
    measure: Measure, table: Mapping[int, Mapping[str, Module]], charted: bool
) -> dict[str, Any]:
    seen = {name for row in table.values() for name in row}
    columns = [*(name for name in ORDER if name in seen), *sorted(seen - set(ORDER))]
    shade = _shade(measure, [m.get(measure.key) for row in table.values() for m in row.values()])
    return {
        "title": measure.title,
        "note": measure.note,
        "columns": columns,
        "rows": [
            {"name": layer, "cells": [_cell(measure, row.get(name), shade) for name in columns]}
            for layer, row in table.items()
        ],
        "charts": _charts(measure, table, columns) if charted else [],
        "first": "as written",
        "second": measure.beside_name,
    }


def _cell(
    measure: Measure, module: Module | None, shade: Callable[[float], float]
) -> dict[str, Any] | None:
    """Text and shade of a module; None for one that was not quantized."""
    if module is None or measure.key not in module:
        return None
    value = module[measure.key]
    return {
        "text": "exact" if value is None else measure.text(value),
        "share": 0.0 if value is None else shade(value),
        "title": ", ".join(f"{key} {_short(number)}" for key, number in module.items()),
    }


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shade(measure: Measure, values: Sequence[float | None]) -> Callable[[float], float]:
    """A map of values to 0 .. DEEPEST, the worst being deepest."""

    def scale(value: float) -> float:
        return math.log10(value) if measure.logarithmic else value

    found = [scale(v) for v in values if v is not None and (v > 0 or not measure.logarithmic)]
    low, high = min(found, default=0.0), max(found, default=0.0)

    def shade(value: float) -> float:
        if high <= low or (measure.logarithmic and value <= 0):
            return 0.0
        share = (scale(value) - low) / (high - low)
        return DEEPEST * (share if measure.more_is_worse else 1 - share)

    return shade


def _charts(
    measure: Measure, table: Mapping[int, Mapping[str, Module]], columns: Sequence[str]
) -> list[tuple[str, Chart]]:
    keys = [("first", measure.key)]
    if measure.beside is not None:
        keys.insert(0, ("second", measure.beside))
    layers = range(max(table) + 1)
    series = {
        column: [
            Series(style=style, values=[table.get(n, {}).get(column, {}).get(key) for n in layers])
            for style, key in keys
        ]
        for column in columns
    }
    # One axis for all: what can be compared at a glance is where the error lies.
    axis = axis_for(
        (each for several in series.values() for each in several),
        measure.logarithmic,
        lambda value: measure.text(value) + measure.unit if measure.logarithmic else f"{value:.6g}",
    )
    if axis is None:
        return []
    return [(column, line_chart(several, axis)) for column, several in series.items()]
