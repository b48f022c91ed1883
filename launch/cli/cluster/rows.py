"""The facts of hosts as one table: a row a fact, a text per host, marked where it differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...cluster.check.facts import (
    ALIKE,
    Report,
    cards,
    devices,
    facts,
    files_digest,
    instructions,
    usual,
    ways_without_access,
)
from ...printable import human_bytes

UNKNOWN, NONE = "?", "-"
Cell = Callable[[Report], str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fact of all hosts, in the order of the hosts; `odd` are those that differ from most."""

    name: str
    texts: tuple[str, ...]
    odd: tuple[bool, ...]


def rows_of(reports: Sequence[Report]) -> list[Row]:
    """The table. Facts that every host has its own of are never odd."""
    host_of = {report["node"]: report["host"] for report in reports}
    compared = {name: _version(package) for package, name in ALIKE.items()}
    compared |= {**COMPARED, **(OF_CARDS if any(map(cards, reports)) else {})}
    own = {**OWN, "reaches": lambda report: _reaches(report, host_of)}
    rows = [_row(name, cell, reports, True) for name, cell in compared.items()]
    rows += [_row(name, cell, reports, False) for name, cell in own.items()]
    if any(facts(report).get("model") for report in reports):
        rows.append(_row("model", _model, reports, True))
    return rows


def _row(name: str, cell: Cell, reports: Sequence[Report], compared: bool) -> Row:
    texts = tuple(cell(report) for report in reports)
    known = [text for text in texts if text != UNKNOWN]
    most = usual(known) if known else UNKNOWN
    odd = tuple(compared and text not in (UNKNOWN, most) for text in texts)
    return Row(name=name, texts=texts, odd=odd)


def _version(package: str) -> Cell:
    return lambda report: report.get("versions", {}).get(package, UNKNOWN)


def _fact(text: Callable[[Mapping[str, Any]], str]) -> Cell:
    return lambda report: text(facts(report)) if facts(report) else UNKNOWN


def _bytes(key: str) -> Cell:
    return _fact(lambda seen: UNKNOWN if seen[key] is None else human_bytes(seen[key]))


def _of_cards(key: str) -> Cell:
    return _fact(
        lambda seen: (
            ", ".join(dict.fromkeys(gpu[key] for gpu in seen["gpus"] if key in gpu)) or NONE
        )
    )


def _gpus(report: Report) -> str:
    if not facts(report):
        return UNKNOWN
    counted = Counter(cards(report)).items()
    return ", ".join(f"{count} x {name}" for name, count in counted) or "none"


def _p2p(report: Report) -> str:
    seen = devices(report)
    if seen is None or len(seen) < 2:
        return UNKNOWN if seen is None else NONE
    lost = len(ways_without_access(report))
    return f"{lost} of {len(seen) * (len(seen) - 1)} ways missing" if lost else "yes"


def _route(seen: Mapping[str, Any]) -> str:
    route = seen["route"]
    if "error" in route:
        return route["error"]
    speed = "" if route["speed_mbit_s"] is None else f", {route['speed_mbit_s']} Mbit/s"
    return f"{route['interface'] or UNKNOWN} {route['address']}{speed}"


def _clock(report: Report) -> str:
    if report["head"]:
        return "reference"
    if (seen := report.get("clock")) is None:
        return UNKNOWN
    return f"{seen['offset_ms']:+.2f} ± {seen['error_ms']:.2f} ms"


def _reaches(report: Report, host_of: Mapping[str, str]) -> str:
    if (peers := report.get("peers")) is None:
        return UNKNOWN
    lost = [host_of[node] for node, answer in peers.items() if "error" in answer]
    if lost:
        return f"not {', '.join(lost)}"
    return f"all {len(peers)}" if peers else NONE


def _model(report: Report) -> str:
    if (model := facts(report).get("model")) is None:
        return UNKNOWN
    if "error" in model or not model["files"]:
        return "missing"
    size = sum(file["size"] for file in model["files"])
    return f"{human_bytes(size)}, {files_digest(model)}"


COMPARED: Mapping[str, Cell] = {
    "CPU kernels": lambda report: instructions(report) or UNKNOWN,
    "GPUs": _gpus,
}
OF_CARDS: Mapping[str, Cell] = {
    "GPU memory": _of_cards("memory.total"),
    "driver": _of_cards("driver_version"),
    "P2P": _p2p,
}
OWN: Mapping[str, Cell] = {
    "cores for Ray": lambda report: f"{report['ray']['CPU']:g}",
    "way to the head": _fact(_route),
    "clock": _clock,
    "free memory": _bytes("memory_bytes"),
    "shared memory": _bytes("shared_memory_bytes"),
    "free disk": _bytes("disk_bytes"),
}
