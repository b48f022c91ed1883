"""The facts of hosts as one table: a row a fact, a text per host, marked where it differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cluster_check.facts import (
    Report,
    cards,
    instructions,
    names_of,
    package,
    peers_of_cards,
    usual,
)
from .output import human_bytes

UNKNOWN = "?"
NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fact of all hosts, in the order of the hosts; `odd` are those that differ from most."""

    name: str
    texts: tuple[str, ...]
    odd: tuple[bool, ...]


def rows_of(reports: Sequence[Report]) -> list[Row]:
    """The table. Facts that every host has its own of are never odd."""
    names = dict(zip((r["node"] for r in reports), names_of(reports), strict=True))
    rows = [_row(name, [text(r) for r in reports], True) for name, text in COMPARED.items()]
    if any(cards(report) for report in reports):
        rows += [_row(name, [text(r) for r in reports], True) for name, text in OF_CARDS.items()]
    rows += [_row(name, [text(r) for r in reports], False) for name, text in OWN.items()]
    rows.append(_row("reaches", [_reach(report, names) for report in reports], False))
    if any(report.get("facts", {}).get("model") for report in reports):
        rows.append(_row("model", [_model(report) for report in reports], True))
    return rows


def _row(name: str, texts: Sequence[str], compared: bool) -> Row:
    known = [text for text in texts if text != UNKNOWN]
    most = usual(known) if known else UNKNOWN
    odd = tuple(compared and text not in (UNKNOWN, most) for text in texts)
    return Row(name=name, texts=tuple(texts), odd=odd)


def _known(text: Callable[[Report], str | None]) -> Callable[[Report], str]:
    return lambda report: text(report) or UNKNOWN


def _fact(text: Callable[[Mapping[str, Any]], str]) -> Callable[[Report], str]:
    return lambda report: text(report["facts"]) if "facts" in report else UNKNOWN


def _gpus(report: Report) -> str:
    names = Counter(cards(report))
    if not names:
        return "none" if "facts" in report else UNKNOWN
    return ", ".join(f"{count} x {name}" for name, count in names.items())


def _gpu_fact(key: str) -> Callable[[Report], str]:
    def text(facts: Mapping[str, Any]) -> str:
        return ", ".join(dict.fromkeys(gpu.get(key, UNKNOWN) for gpu in facts["gpus"])) or NONE

    return _fact(text)


def _p2p(report: Report) -> str:
    count = len(report.get("facts", {}).get("torch", {}).get("devices", []))
    if count < 2:
        return NONE if "facts" in report else UNKNOWN
    missing = peers_of_cards(report)
    return f"{len(missing)} of {count * (count - 1)} ways missing" if missing else "yes"


def _route(facts: Mapping[str, Any]) -> str:
    route = facts["route"]
    if "error" in route:
        return route["error"]
    speed = "" if route["speed_mbit_s"] is None else f", {route['speed_mbit_s']} Mbit/s"
    return f"{route['interface'] or UNKNOWN} {route['address']}{speed}"


def _clock(report: Report) -> str:
    if report["head"]:
        return "reference"
    offset = report.get("clock")
    if offset is None:
        return UNKNOWN
    return f"{offset['offset_ms']:+.2f} ± {offset['error_ms']:.2f} ms"


def _bytes(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda facts: UNKNOWN if facts[key] is None else human_bytes(facts[key])


def _reach(report: Report, names: Mapping[str, str]) -> str:
    if "peers" not in report:
        return UNKNOWN
    lost = [names[node] for node, answer in report["peers"].items() if "error" in answer]
    if not report["peers"]:
        return NONE
    return f"not {', '.join(lost)}" if lost else f"all {len(report['peers'])}"


def _model(report: Report) -> str:
    model = report.get("facts", {}).get("model")
    if model is None:
        return UNKNOWN
    if "error" in model:
        return model["error"]
    hashes = " ".join(sha[:8] for sha in model["sha256"].values() if sha)
    return f"{human_bytes(model['bytes'])} {hashes}".strip()


COMPARED: Mapping[str, Callable[[Report], str]] = {
    "isobit": _known(lambda report: package(report, "isobit")),
    "Ray": _known(lambda report: package(report, "ray")),
    "torch": _known(lambda report: package(report, "torch")),
    "Python": _fact(lambda facts: facts["python"]),
    "CPU kernels": _known(instructions),
    "GPUs": _gpus,
}
OF_CARDS: Mapping[str, Callable[[Report], str]] = {
    "GPU memory": _gpu_fact("memory.total"),
    "driver": _gpu_fact("driver_version"),
    "P2P": _p2p,
}
OWN: Mapping[str, Callable[[Report], str]] = {
    "cores for Ray": lambda report: f"{report['ray']['CPU']:g}",
    "way to the head": _fact(_route),
    "clock": _clock,
    "free memory": _fact(_bytes("memory_bytes")),
    "shared memory": _fact(_bytes("shared_memory_bytes")),
    "free disk": _fact(_bytes("disk_bytes")),
}
