"""The report of a check as one HTML page, from the JSON that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...shard.checkpoint.write_file import write_beside
from ..pages.measured_facts import measured_facts
from ..pages.own_page import check_page
from ..pages.render import render

GENERATOR = "isobit gpu check"
MACHINE = ("machine", "gpus", "reaches", "clocks_before", "clocks_after")


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page, all of it or nothing; raises InputError as check_page does, E-OUT-WRITE."""
    check_page(path, GENERATOR)
    write_beside(path, gpu_page(report))


def gpu_page(report: Mapping[str, Any]) -> str:
    """The page of a report as `check_gpus` gives it."""
    counts = report["verdict"]["counts"]
    names = [gpu["name"] for gpu in report["gpus"]]
    seconds = sum(result["seconds"] for result in report["results"])
    page = {
        "title": ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
        "tone": "good" if report["verdict"]["passed"] else "bad",
        "said": "passed" if report["verdict"]["passed"] else "failed",
        "tiles": [
            _tile("passed", str(counts["passed"]), "steps"),
            _tile("failed", str(counts["failed"]), "steps"),
            _tile("not run", str(counts["not run"]), "with the reason below"),
            _tile("time", f"{seconds:.0f} s", "of all steps"),
        ],
        "results": [
            {"log": "", **result, "facts": _few(result["rows"])} for result in report["results"]
        ],
        "facts": measured_facts({name: report[name] for name in MACHINE}, GENERATOR),
        "sums": _table(report["verdict"]["sums"]),
        "generator": GENERATOR,
        "version": version("isobit"),
        "made": report["machine"]["date"],
    }
    text = render("gpu.html.j2", page=page, report=report)
    return text.encode("utf-8", "replace").decode("utf-8")


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _few(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row as one line."""
    return [", ".join(f"{key} {_text(value)}" for key, value in row.items()) for row in rows]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(sums: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Microseconds by pair and way, a column for each number of rows."""
    columns = sorted({row["rows"] for row in sums})
    keys = dict.fromkeys((row["place"], row["over"]) for row in sums)
    times = {(row["place"], row["over"], row["rows"]): row["us"] for row in sums}
    lines = [
        {
            "place": place,
            "over": over,
            "cells": [
                f"{times[place, over, rows]:.1f}" if (place, over, rows) in times else "–"
                for rows in columns
            ],
        }
        for place, over in keys
    ]
    return {"columns": columns, "lines": lines}
