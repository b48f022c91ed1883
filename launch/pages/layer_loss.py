"""What each step from the reference to the ranks' answer costs, as a whole and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .charts import Chart, Series, axis_for, line_chart
from .layer_map import HALVES, Checks, row_of, shown
from .module_map import DEEPEST

NAMES = {"self_attn": "attention", "mlp": "MLP"}
PARTS = {"sharding": "sharding", "reduction_order": "order of additions"}


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """What the template shows: totals, then rows of cells with text and share, under `columns`."""

    tiles: list[dict[str, str]]
    columns: list[str]
    rows: list[dict[str, Any]]
    charts: list[tuple[str, Chart]]


def layer_loss(measured: Checks) -> LayerLoss | None:
    """The split that check 8 measured, in nats; None when it measured nothing."""
    reference = measured.get("reference", {})
    damage, run = reference.get("quantization"), reference.get("run", {})
    if not damage and not run:
        return None
    tiles = []
    if damage:
        before, after = damage["reference_perplexity"], damage["perplexity"]
        note = f"nats; perplexity {before:.4g} to {after:.4g}"
        tiles.append({"name": "quantization", "value": shown(damage["kl"]), "note": note})
    notes = {
        "rounding": "nats; activations in the dtype of the run",
        "sharding": "nats; cut over the ranks, sums gathered",
        "reduction_order": "nats; sums by the run's own all-reduce",
    }
    for name, note in notes.items():
        if run.get(name) is not None:
            value = "0" if not run[name] else shown(run[name])
            title = PARTS.get(name, name)
            tiles.append({"name": title, "value": value, "note": note if run[name] else _NONE})
    halves = damage["halves"] if damage else []
    return LayerLoss(
        tiles=tiles,
        columns=_columns(halves, run),
        rows=_rows(halves, run, measured.get("degrees", {})),
        charts=_charts(halves),
    )


_NONE = "no number changes"


def _columns(halves: list[Mapping[str, Any]], run: Mapping[str, Any]) -> list[str]:
    if not any(half["kl"] is not None for half in halves):
        return []
    quantized = [f"quantized {NAMES[half]}" for half in HALVES]
    return quantized + [text for name, text in PARTS.items() if run.get(name) is not None]


def _rows(
    halves: list[Mapping[str, Any]], run: Mapping[str, Any], degrees: Mapping[str, Any]
) -> list[dict[str, Any]]:
    costs = [half["kl"] for half in halves if half["kl"] is not None]
    if not costs:
        return []
    most = max(costs) or 1.0
    layers = sorted({half["layer"] for half in halves})
    rows = []
    for layer in layers:
        own = {half["name"].rpartition(".")[2]: half["kl"] for half in halves if _at(half, layer)}
        cells = [
            {
                "text": "–" if own.get(half) is None else shown(own[half]),
                "share": DEEPEST * (own.get(half) or 0.0) / most,
            }
            for half in HALVES
        ]
        for name in PARTS:
            if run.get(name) is not None:
                cells.append({"text": _part(run[name], layer, degrees), "share": 0.0})
        rows.append({"name": layer, "cells": cells})
    return rows


def _at(half: Mapping[str, Any], layer: int) -> bool:
    return half["layer"] == layer


def _part(whole: float, layer: int, degrees: Mapping[str, Any]) -> str:
    """A part that costs nothing at the end of the pass, or that begins at a known layer."""
    if not whole:
        return "0"
    apart = degrees.get("first_difference")
    if apart is None:
        return "–"
    first = row_of(apart["site"])
    return "0" if first.isdigit() and layer < int(first) else "bits differ"


def _charts(halves: list[Mapping[str, Any]]) -> list[tuple[str, Chart]]:
    layers = max((half["layer"] for half in halves), default=-1) + 1
    series = {}
    for name in HALVES:
        costs = {half["layer"]: half["kl"] for half in halves if half["name"].endswith(name)}
        values = [costs.get(layer) for layer in range(layers)]
        series[NAMES[name]] = Series(style="first", values=values)
    axis = axis_for(series.values(), True, shown)
    if axis is None:
        return []
    return [(name, line_chart([each], axis)) for name, each in series.items()]
