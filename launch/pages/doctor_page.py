"""The doctor's report as one HTML page for people, from the JSON that `--json` prints.

Nothing here needs torch: the page has to come out where torch is broken.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...shard.checkpoint.write_file import write_beside
from ..printable import human_bytes, printable
from .layer_loss import layer_loss
from .layer_map import layer_map
from .measured_facts import measured_facts
from .own_page import check_page
from .render import render

GENERATOR = "isobit doctor"
PLACE = ("site", "layer", "op", "rank", "atom")
DRAWN = {"plan": ("memory", "layers"), "numbers": ("sites",), "reference": ("quantization", "text")}
"""What checks measure that the page shows as tables of its own, or that nobody reads."""
ENVIRONMENT = "environment"
MOST_FINDINGS = 20


def write_page(path: Path, report: Mapping[str, Any], made: str) -> None:
    """Write the page, all of it or nothing; raises InputError as check_page does, E-OUT-WRITE."""
    check_page(path, GENERATOR)
    write_beside(path, printable(doctor_page(report, made)))


def doctor_page(report: Mapping[str, Any], made: str) -> str:
    """The page of a report, as Diagnosis.report gives it; `made` says when, in words."""
    case = report["case"]
    measured = {check["name"]: check["measured"] for check in report["checks"]}
    name = Path(case["model"]).name if case else "this machine"
    page = {
        "title": f"{name} at tp {case['tp']}" if case else name,
        "tone": "good" if report["verdict"] == "healthy" else "bad",
        "place": _place(report),
        "warnings": _warnings(report),
        "tiles": _tiles(report, measured),
        "layers": layer_map(report, measured),
        "loss": layer_loss(measured),
        "memory": _memory(measured.get("plan", {}).get("memory", [])),
        "environment": measured_facts(measured.get(ENVIRONMENT, {})),
        "case": _case(case),
        "checks": [_check(check) for check in report["checks"]],
        "generator": GENERATOR,
        "version": version("isobit"),
        "made": made,
    }
    text = render("doctor.html.j2", page=page, report=report)
    # Names of files may hold bytes that are no text in any encoding.
    return text.encode("utf-8", "replace").decode("utf-8")


def _place(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {found[key]}" for key in PLACE if found[key] is not None)


def _warnings(report: Mapping[str, Any]) -> list[str]:
    findings = [found for check in report["checks"] for found in check["findings"]]
    return [found["what"] for found in findings if found["status"] == "warning"][:MOST_FINDINGS]


def _tiles(report: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, str]]:
    checks = report["checks"]
    ran = [check for check in checks if check["status"] != "skipped"]
    count = {
        status: sum(f["status"] == status for check in checks for f in check["findings"])
        for status in ("fault", "warning", "note")
    }
    tiles = [
        _tile("checks", f"{len(ran)} of {len(checks)}", "ran"),
        _tile("faults", str(count["fault"]), f"warnings: {count['warning']}"),
        _tile("time", f"{sum(check['seconds'] for check in checks):.0f} s", "of all checks"),
    ]
    if ranks := measured.get("plan", {}).get("memory"):
        most = max(rank["weights"] + rank["step"] for rank in ranks)
        tiles.append(_tile("memory per rank", human_bytes(most), "at most, without KV cache"))
    return tiles


def _tile(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _memory(ranks: list[Mapping[str, int]]) -> dict[str, Any] | None:
    if not ranks:
        return None
    totals = [rank["weights"] + rank["step"] + rank["kv_cache"] for rank in ranks]
    rows = []
    for rank, total in zip(ranks, totals, strict=True):
        parts = {
            "weights": rank["weights"] - rank["padding"],
            "padding": rank["padding"],
            "step": rank["step"],
            "kv": rank["kv_cache"],
        }
        rows.append(
            {
                "rank": rank["rank"],
                "parts": [(key, 100 * size / max(totals)) for key, size in parts.items()],
                "cells": [*(human_bytes(size) for size in parts.values()), human_bytes(total)],
            }
        )
    return {"context": ranks[0]["context"], "rows": rows}


def _case(case: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not case:
        return []
    lengths = ", ".join(str(len(prompt)) for prompt in case["prompts"])
    return [
        ("model", case["model"]),
        ("reference", case["reference"] or "none"),
        ("degree", str(case["tp"])),
        ("layout", f"{case['layout']}, {case['atoms']} atoms"),
        ("dtype", case["dtype"]),
        ("all-reduce", case["all_reduce"]),
        ("prompts", f"{len(case['prompts'])}, of {lengths} tokens"),
        ("tokens to generate", str(case["max_tokens"])),
        ("checks", "quick ones alone" if case["quick"] else "all"),
    ]


def _check(check: Mapping[str, Any]) -> dict[str, Any]:
    drawn = DRAWN.get(check["name"], ())
    findings = [{**found, "place": _place(found)} for found in check["findings"]]
    own = {} if check["name"] == ENVIRONMENT else check["measured"]
    return {
        "name": check["name"],
        "status": check["status"],
        "time": "" if check["status"] == "skipped" else f"{check['seconds']:.1f} s",
        "findings": findings[:MOST_FINDINGS],
        "left_out": len(findings[MOST_FINDINGS:]),
        "facts": measured_facts({k: v for k, v in own.items() if k not in drawn}),
    }
