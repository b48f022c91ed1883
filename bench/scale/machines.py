"""Cards, links and clusters, and what is assumed about them: every number that is not a plan's.

`python -m bench.scale --print-links` prints all of it as JSON; `--links FILE` reads it back. A file
may hold only what it changes: an entry replaces the one of the same name, or is added.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Card:
    """One device. `read_gb_s`: 10^9 bytes of memory a second; `tflop_s`: dense, summed in fp32.

    `read_share`: the part of read_gb_s that products of few rows are assumed to reach.
    """

    name: str
    gib: float
    read_gb_s: float
    tflop_s: float
    read_share: float = 0.7
    source: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """What carries a rank's messages. `gb_s` is what one rank takes in, 10^9 bytes a second.

    `hop_us`: from one rank to the next in a ring of the library. `custom_us`: one exchange of flags
    in an own kernel; None where there is none, between hosts.
    """

    name: str
    gb_s: float
    hop_us: float
    custom_us: float | None = None
    source: str


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Boxes of `box` equal cards: `inside` joins the cards of a box, `between` the boxes."""

    name: str
    card: str
    box: int
    inside: str
    between: str


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Shares of what a card or a link could do at most, and fixed times.

    `ring_us`: a collective of the library, beside its hops. `kernel_us`: a launch within a graph;
    how many there are is counted (bench/launches.py).
    `step_us`: message to the ranks and back, sampling. `memory_share`: --gpu-memory-utilization.
    """

    flop_share: float = 0.5
    link_share: float = 0.8
    memory_share: float = 0.9
    ring_us: float = 8.4
    kernel_us: float = 1.5
    step_us: float = 700.0


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Everything that a calculation knows beside models."""

    cards: tuple[Card, ...]
    links: tuple[Link, ...]
    clusters: tuple[Cluster, ...]
    assumptions: Assumptions = Assumptions()

    def card(self, name: str) -> Card:
        return _named(self.cards, name, "card")

    def link(self, name: str) -> Link:
        return _named(self.links, name, "link")

    def cluster(self, name: str) -> Cluster:
        return _named(self.clusters, name, "cluster")


GA102 = "NVIDIA GA102 whitepaper"
HOPPER = "NVIDIA H100 data sheet (SXM)"
NCCL_HOPS = "hop: NCCL's tuning.cc (ring, simple)"
STAGED_HOP = "hop: assumed, two of them and ring_us are the 39 µs others saw for 10 KB"
OWN = "custom: assumed"

MACHINES = Machines(
    cards=(
        Card(name="RTX 3090", gib=24, read_gb_s=936, tflop_s=71, source=GA102),
        Card(
            name="H100",
            gib=80,
            read_gb_s=3350,
            tflop_s=989,
            read_share=0.5,
            source=f"{HOPPER}; share: assumed, instructions and not memory are the bound",
        ),
    ),
    links=(
        *(
            Link(
                name=f"PCIe {kind}, {way}",
                gb_s=gb_s,
                hop_us=5.7 if way == "P2P" else 15.0,
                custom_us=10.0 if way == "P2P" else 20.0,
                source=f"lanes x rate; {NCCL_HOPS if way == 'P2P' else STAGED_HOP}; {OWN}",
            )
            for kind, gb_s in (("3.0 x8", 7.9), ("3.0 x16", 15.8), ("4.0 x16", 31.5))
            for way in ("P2P", "no P2P")
        ),
        Link(
            name="NVLink bridge",
            gb_s=56.2,
            hop_us=3.4,
            custom_us=6.0,
            source=f"{GA102}; {NCCL_HOPS}; {OWN}",
        ),
        Link(
            name="NVSwitch",
            gb_s=450,
            hop_us=3.4,
            custom_us=6.0,
            source=f"{HOPPER}; {NCCL_HOPS}; {OWN}",
        ),
        *(
            Link(
                name=f"{rate} GbE",
                gb_s=rate / 8,
                hop_us=30.0,
                source="line rate; hop: assumed for TCP",
            )
            for rate in (10, 25)
        ),
        *(
            Link(
                name=f"InfiniBand {rate}",
                gb_s=rate / 8,
                hop_us=9.6,
                source=f"line rate; {NCCL_HOPS}",
            )
            for rate in (100, 200, 400)
        ),
    ),
    clusters=(
        Cluster(
            name="3090, PCIe 3.0 x8 no P2P, boxes of 4, 10 GbE",
            card="RTX 3090",
            box=4,
            inside="PCIe 3.0 x8, no P2P",
            between="10 GbE",
        ),
        Cluster(
            name="3090, NVLink pairs, boxes of 2, 25 GbE",
            card="RTX 3090",
            box=2,
            inside="NVLink bridge",
            between="25 GbE",
        ),
        Cluster(
            name="3090, PCIe 3.0 x16 P2P, boxes of 4, InfiniBand 100",
            card="RTX 3090",
            box=4,
            inside="PCIe 3.0 x16, P2P",
            between="InfiniBand 100",
        ),
        Cluster(
            name="3090, PCIe 4.0 x16 P2P, boxes of 8, InfiniBand 200",
            card="RTX 3090",
            box=8,
            inside="PCIe 4.0 x16, P2P",
            between="InfiniBand 200",
        ),
        Cluster(
            name="H100, NVSwitch, boxes of 8, InfiniBand 400",
            card="H100",
            box=8,
            inside="NVSwitch",
            between="InfiniBand 400",
        ),
    ),
)

SECTIONS: dict[str, type] = {"cards": Card, "links": Link, "clusters": Cluster}


def read_machines(file: Path) -> Machines:
    """The machines above with what a file changes; raises InputError E-SCALE-LINKS."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("E-SCALE-LINKS", f"{file}: {error}") from error
    known = [*SECTIONS, "assumptions"]
    if not isinstance(found, dict) or set(found) - set(known):
        raise InputError("E-SCALE-LINKS", f"{file}: expected an object with {', '.join(known)}")
    changes: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        entries = {entry.name: entry for entry in getattr(MACHINES, section)}
        for values in found.get(section, []):
            entry = _entry(kind, values, f"{file}: {section}")
            entries[entry.name] = entry
        changes[section] = tuple(entries.values())
    assumed = dataclasses.asdict(MACHINES.assumptions) | found.get("assumptions", {})
    changes["assumptions"] = _entry(Assumptions, assumed, f"{file}: assumptions")
    machines = Machines(**changes)
    for cluster in machines.clusters:
        machines.card(cluster.card)
        machines.link(cluster.between)
        if machines.link(cluster.inside).custom_us is None:
            raise InputError(
                "E-SCALE-LINKS",
                f"{file}: {cluster.name!r}: {cluster.inside!r} is no link inside a box: it has "
                "no custom_us",
            )
    return machines


def _entry(kind: type, values: Any, where: str) -> Any:
    """A frozen entry out of JSON, with every name known and every number positive."""
    if not isinstance(values, dict):
        raise InputError("E-SCALE-LINKS", f"{where}: {values!r}, expected an object")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    faults = [f"{key} is not known" for key in values if key not in fields]
    for name, field in fields.items():
        if name not in values:
            if field.default is dataclasses.MISSING:
                faults.append(f"{name} is missing")
            continue
        value, wanted = values[name], str(field.type)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        right = {
            "str": isinstance(value, str),
            "bool": isinstance(value, bool),
            "int": isinstance(value, int) and number and value > 0,
            "float": number and value > 0,
            "float | None": value is None or (number and value > 0),
        }[wanted]
        if not right:
            faults.append(f"{name} is {value!r}, expected {wanted}, numbers above 0")
    if faults:
        label = values.get("name", "")
        raise InputError("E-SCALE-LINKS", f"{where} {label!r}: {'; '.join(faults)}")
    return kind(**values)


def _named(entries: tuple[Any, ...], name: str, kind: str) -> Any:
    for entry in entries:
        if entry.name == name:
            return entry
    names = "; ".join(entry.name for entry in entries)
    raise InputError("E-SCALE-LINKS", f"no {kind} {name!r}. Known: {names}")
