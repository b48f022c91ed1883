"""The facts of hosts as one table: a row a fact, a text per host, marked where it differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]
"""One host, as `visit.visit` reports it."""
UNKNOWN = "?"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fact of all hosts, in the order of the hosts; `odd` are those that differ from most."""

    name: str
    texts: tuple[str, ...]
    odd: tuple[bool, ...]


def names_of(reports: Sequence[Report]) -> list[str]:
    """A short name per host that no other has: host name, else address, else with the node id."""
    found = []
    for report in reports:
        candidates = (
            lambda r: r.get("facts", {}).get("hostname", r["address"]),
            lambda r: r["address"],
            lambda r: f"{r['address']}/{r['node'][:6]}",
        )
        found.append(
            next(
                name(report)
                for name in candidates
                if sum(name(other) == name(report) for other in reports) == 1
            )
        )
    return found


def rows_of(reports: Sequence[Report]) -> list[Row]:
    """The table. Facts that every host has its own of are never odd."""
    names = dict(zip((r["node"] for r in reports), names_of(reports), strict=True))
    rows = [_row(name, [text(r) for r in reports], True) for name, text in COMPARED.items()]
    rows += [_row(name, [text(r) for r in reports], False) for name, text in OWN.items()]
    rows.append(_row("reaches", [_reach(report, names) for report in reports], False))
    if any(report.get("facts", {}).get("model") for report in reports):
        rows.append(_row("model", [_model(report) for report in reports], True))
    return rows


def usual(values: Sequence[Any]) -> Any:
    """The value that most have; of several such the first, which is the head's if it is one."""
    return Counter(values).most_common(1)[0][0]


def _row(name: str, texts: Sequence[str], compared: bool) -> Row:
    known = [text for text in texts if text != UNKNOWN]
    most = usual(known) if known else UNKNOWN
    odd = tuple(compared and text not in (UNKNOWN, most) for text in texts)
    return Row(name=name, texts=tuple(texts), odd=odd)


def package(report: Report, name: str) -> str | None:
    """The version of a package, which a host without facts may have told as well."""
    if "facts" not in report:
        return report.get(name)
    return report["facts"]["packages"].get(name)


def instructions(report: Report) -> str | None:
    """The instruction set of the CPU kernels, where they can be loaded."""
    kernels = report.get("facts", {}).get("kernels") or {}
    return f"{kernels['isa']}, vnni {kernels['vnni']}" if "isa" in kernels else None


def cards(report: Report) -> list[str]:
    """Names of the GPUs that the driver lists."""
    return [gpu["name"] for gpu in report.get("facts", {}).get("gpus", [])]


def peers_of_cards(report: Report) -> list[tuple[int, int]]:
    """Pairs of GPUs of which the first cannot read the memory of the second."""
    devices = report.get("facts", {}).get("torch", {}).get("devices", [])
    return [
        (index, other)
        for index, device in enumerate(devices)
        for other in range(len(devices))
        if other != index and other not in device["peers"]
    ]


def _known(text: Callable[[Report], str | None]) -> Callable[[Report], str]:
    return lambda report: text(report) or UNKNOWN


def _fact(text: Callable[[Mapping[str, Any]], str]) -> Callable[[Report], str]:
    return lambda report: text(report["facts"]) if "facts" in report else UNKNOWN


def _gpus(report: Report) -> str:
    names = Counter(cards(report))
    if not names:
        return "none" if "facts" in report else UNKNOWN
    return ", ".join(f"{count} x {name}" for name, count in names.items())


def _gpu_fact(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda facts: ", ".join(dict.fromkeys(g.get(key, UNKNOWN) for g in facts["gpus"])) or "-"


def _p2p(report: Report) -> str:
    count = len(report.get("facts", {}).get("torch", {}).get("devices", []))
    if count < 2:
        return "-" if "facts" in report else UNKNOWN
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


def _gib(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda facts: UNKNOWN if facts[key] is None else f"{facts[key] / 2**30:.1f} GiB"


def _reach(report: Report, names: Mapping[str, str]) -> str:
    if "peers" not in report:
        return UNKNOWN
    lost = [names[node] for node, answer in report["peers"].items() if "error" in answer]
    if not report["peers"]:
        return "-"
    return f"not {', '.join(lost)}" if lost else f"all {len(report['peers'])}"


def _model(report: Report) -> str:
    model = report.get("facts", {}).get("model")
    if model is None:
        return UNKNOWN
    if "error" in model:
        return model["error"]
    hashes = " ".join(sha[:8] for sha in model["sha256"].values() if sha)
    return f"{model['bytes'] / 2**30:.2f} GiB {hashes}".strip()


COMPARED: Mapping[str, Callable[[Report], str]] = {
    "isobit": _known(lambda report: package(report, "isobit")),
    "Ray": _known(lambda report: package(report, "ray")),
    "torch": _known(lambda report: package(report, "torch")),
    "Python": _fact(lambda facts: facts["python"]),
    "CPU kernels": _known(instructions),
    "GPUs": _gpus,
    "GPU memory": _fact(_gpu_fact("memory.total")),
    "driver": _fact(_gpu_fact("driver_version")),
    "P2P": _p2p,
}
OWN: Mapping[str, Callable[[Report], str]] = {
    "way to the head": _fact(_route),
    "clock": _clock,
    "free memory": _fact(_gib("memory_bytes")),
    "shared memory": _fact(_gib("shared_memory_bytes")),
    "free disk": _fact(_gib("disk_bytes")),
}
