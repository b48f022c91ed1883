"""A table of layers by ranks: how large numbers get, what quantization cost, where checks point."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from string import ascii_uppercase
from typing import Any

from .module_map import DEEPEST

_LAYER = re.compile(r"layers\.(\d+)\.")
BEFORE, AFTER = "embedding", "head"
HALVES = ("self_attn", "mlp")
FLOAT16_END = 65504
MOST_MARKS, MORE = 12, "…"

Checks = Mapping[str, Mapping[str, Any]]
"""What each check measured, by its name."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A place that a check names, or that the verdict names."""

    text: str
    row: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """What the template shows. A cell has text, share (0 .. 1), title and letters of marks."""

    degree: int
    decibels: bool
    magnitudes: bool
    rows: list[dict[str, Any]]
    marks: list[tuple[str, str]]
    note: str


def layer_map(report: Mapping[str, Any], measured: Checks) -> LayerMap | None:
    """The table of a doctor's report; None when no check measured or named a place."""
    degree = report["case"].get("tp")
    sites = measured.get("numbers", {}).get("sites", {})
    halves = _halves(measured)
    marks = _marks(report, measured)
    if degree is None or not (sites or halves or marks):
        return None
    largest = _largest(sites, degree)
    numbered = [int(row) for row in {*largest, *(m.row for m in marks), *halves} if row.isdigit()]
    layers = measured.get("plan", {}).get("layers", max(numbered, default=-1) + 1)
    letters = {
        mark: ascii_uppercase[number] if number < MOST_MARKS else MORE
        for number, mark in enumerate(marks)
    }
    shade = _shade([cell[1] for row in largest.values() for cell in row if cell], True)
    quiet = _shade([half["sqnr_db"] for row in halves.values() for half in row.values()], False)
    rows = []
    for name in (BEFORE, *map(str, range(layers)), AFTER):
        here = {mark: letter for mark, letter in letters.items() if mark.row == name}
        if name not in largest and not here and not name.isdigit():
            continue
        cells = []
        for rank in range(degree):
            cell = _cell(largest[name][rank] if name in largest else None, shade)
            held = [letter for mark, letter in here.items() if rank in mark.ranks]
            cell["marks"] = list(dict.fromkeys(held))
            if held and not sites:
                cell |= {"text": "", "share": DEEPEST}
            cells.append(cell)
        noise = [_noise(halves.get(name, {}).get(half), quiet) for half in HALVES]
        rows.append({"name": name, "cells": cells, "noise": noise})
    return LayerMap(
        degree=degree,
        decibels=bool(halves),
        magnitudes=bool(sites),
        rows=rows,
        marks=_listed(letters),
        note=_note(measured.get("numbers", {}), bool(sites), bool(halves)),
    )


def row_of(site: str) -> str:
    """The row of a site: its layer's number, or what lies before or behind the layers."""
    found = _LAYER.search(site)
    if found:
        return found[1]
    return BEFORE if site.startswith(("embed_tokens", "model.embed_tokens")) else AFTER


def shown(value: float) -> str:
    """264192.0 -> "2.64e5"."""
    return re.sub(r"e([+-])0*", lambda e: "e" + e[1].strip("+"), f"{value:.3g}")


def _halves(measured: Checks) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The loss of the halves of layers, by layer and half."""
    table: dict[str, dict[str, Mapping[str, Any]]] = {}
    for half in (measured.get("reference", {}).get("quantization") or {}).get("halves", ()):
        table.setdefault(str(half["layer"]), {})[half["name"].rpartition(".")[2]] = half
    return table


def _marks(report: Mapping[str, Any], measured: Checks) -> list[Mark]:
    everyone = tuple(range(report["case"].get("tp", 0)))

    def ranks(found: Mapping[str, Any]) -> tuple[int, ...]:
        return everyone if found["rank"] is None else (found["rank"],)

    marks = []
    if report["verdict"] != "healthy" and (row := _row(report)) is not None:
        place = report["site"] or report["op"] or f"layer {report['layer']}"
        on = "every rank" if report["rank"] is None else f"rank {report['rank']}"
        marks.append(Mark(text=f"the verdict: {place}, {on}", row=row, ranks=ranks(report)))
    place = measured.get("numbers", {}).get("first_not_finite")
    if place is not None:
        text = (
            f"the first that is not finite: {place['site']}, prompt {place['prompt']}, position "
            f"{place['position']}, token {place['token']}"
        )
        marks.append(Mark(text=text, row=row_of(place["site"]), ranks=tuple(place["ranks"])))
    apart = measured.get("degrees", {}).get("first_difference")
    if apart is not None:
        text = (
            f"the first whose bits differ from tp 1: {apart['site']} ({apart['part']}), rank "
            f"{apart['rank']}"
        )
        marks.append(Mark(text=text, row=row_of(apart["site"]), ranks=(apart["rank"],)))
    for check in report["checks"]:
        if check["name"] == "degrees" and apart is not None:
            continue
        for found in check["findings"]:
            other = found["status"] == "fault" and found["what"] != report["what"]
            if other and (row := _row(found)) is not None:
                text = f"{check['name']}: {' '.join(found['what'].split())}"
                marks.append(Mark(text=text, row=row, ranks=ranks(found)))
    return list(dict.fromkeys(marks))


def _listed(letters: Mapping[Mark, str]) -> list[tuple[str, str]]:
    lines = [(letter, mark.text) for mark, letter in letters.items() if letter != MORE]
    left = len(letters) - len(lines)
    return [*lines, (MORE, f"{left} more: see the checks")] if left else lines


def _row(found: Mapping[str, Any]) -> str | None:
    if found["layer"] is not None:
        return str(found["layer"])
    return None if found["site"] is None else row_of(found["site"])


Largest = tuple[str, float, float]
"""The site with the largest magnitude, that magnitude, and the worst share that is not finite."""


def _largest(sites: Mapping[str, Any], degree: int) -> dict[str, list[Largest | None]]:
    table: dict[str, list[Largest | None]] = {}
    for site, numbers in sites.items():
        row = table.setdefault(row_of(site), [None] * degree)
        for rank, absmax in enumerate(numbers["absmax"]):
            if absmax is None:
                continue
            known, lost = row[rank], numbers["non_finite"][rank] or 0.0
            if known is None:
                row[rank] = (site, absmax, lost)
            else:
                larger = max((known[1], known[0]), (absmax, site), key=itemgetter(0))
                row[rank] = (larger[1], larger[0], max(lost, known[2]))
    return table


def _cell(found: Largest | None, shade: Any) -> dict[str, Any]:
    if found is None:
        return {"text": "–", "share": 0.0, "title": "", "lost": False}
    site, absmax, lost = found
    title = f"absmax {shown(absmax)} at {site}"
    if lost:
        return {
            "text": "not finite",
            "share": DEEPEST,
            "title": f"{lost:.3g} of a site are not finite; of the rest {title}",
            "lost": True,
        }
    return {"text": shown(absmax), "share": shade(absmax), "title": title, "lost": False}


def _noise(half: Mapping[str, Any] | None, shade: Any) -> dict[str, Any]:
    if half is None:
        return {"text": "–", "share": 0.0}
    value = half["sqnr_db"]
    return {"text": "exact" if value is None else f"{value:.1f}", "share": shade(value)}


def _shade(values: Sequence[float | None], magnitudes: bool) -> Any:
    """A map to 0 .. half of DEEPEST: the other half is for what is not finite."""

    def scale(value: float) -> float:
        return math.log10(value) if magnitudes else -value

    found = [scale(v) for v in values if v is not None and (v > 0 or not magnitudes)]
    low, high = min(found, default=0.0), max(found, default=0.0)

    def shade(value: float | None) -> float:
        if value is None or high <= low or (magnitudes and value <= 0):
            return 0.0
        return DEEPEST / 2 * (scale(value) - low) / (high - low)

    return shade


def _note(numbers: Mapping[str, Any], magnitudes: bool, decibels: bool) -> str:
    said = []
    if magnitudes:
        dtype = numbers["dtype"]
        said.append(f"The largest magnitude in each layer on each rank, run in {dtype}.")
        if dtype == "float16":
            said.append(f"What is stored in float16 has to stay below {FLOAT16_END}.")
    else:
        said.append("The largest magnitudes were not measured.")
    if decibels:
        said.append(
            "Signal to noise is what half a layer adds to the residual stream over the error that "
            "quantization makes of it, in decibels; 6 dB are one bit."
        )
    if magnitudes or decibels:
        said.append("Redder is larger, or noisier.")
    return " ".join(said)
