"""GPUs, network, clocks and shared memory of hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from .facts import Report, cards, peers_of_cards
from .finding import HostFinding

CLOCK_MS = 1000.0
SLOW_MBIT_S = 1000
SHARED_BYTES = 64 << 20
"""What 16 ranks may need for the custom collectives."""


def graphics(reports: Mapping[str, Report]) -> list[HostFinding]:
    found = []
    for name, report in reports.items():
        offered, listed = round(report["ray"]["GPU"]), len(cards(report))
        if "facts" in report and offered != listed:
            found.append(
                HostFinding(
                    gravity="warning",
                    what=f"Ray offers {offered} GPUs on {name}, the driver lists {listed}",
                    hosts=(name,),
                    way_out=f"ray start --num-gpus={listed} on {name}",
                )
            )
        if missing := peers_of_cards(report):
            pairs = ", ".join(f"{a}->{b}" for a, b in missing[:6])
            found.append(
                HostFinding(
                    gravity="note",
                    what=f"GPUs of {name} cannot read each other's memory ({pairs}): sums go "
                    "through the host's memory",
                    hosts=(name,),
                    way_out="none is needed; should NCCL hang there, NCCL_P2P_DISABLE=1",
                )
            )
    kinds = {name: sorted(set(cards(report))) for name, report in reports.items()}
    if len({kind for them in kinds.values() for kind in them}) > 1:
        every = "; ".join(f"{', '.join(them) or 'none'} on {name}" for name, them in kinds.items())
        found.append(
            HostFinding(
                gravity="warning",
                what=f"different GPUs: {every}",
                hosts=(),
                way_out="the same bits are promised within one GPU architecture: place the ranks "
                "on cards of one kind",
            )
        )
    return found


def reach(reports: Mapping[str, Report]) -> list[HostFinding]:
    name_of = {report["node"]: name for name, report in reports.items()}
    lost: dict[str, list[str]] = defaultdict(list)
    for name, report in reports.items():
        for node, answer in report.get("peers", {}).items():
            if "error" in answer:
                lost[name].append(f"{name_of[node]} ({answer['error']})")
    return [
        HostFinding(
            gravity="fault",
            what=f"{name} cannot open a TCP connection to {', '.join(them)}",
            hosts=(name,),
            way_out="open every TCP port between the hosts of the cluster (and none to others): "
            "ufw allow from SUBNET; see with ip route whether they share a network",
        )
        for name, them in lost.items()
    ]


def clock(reports: Mapping[str, Report]) -> list[HostFinding]:
    found = []
    for name, report in reports.items():
        seen = report.get("clock")
        if seen is not None and abs(seen["offset_ms"]) - seen["error_ms"] > CLOCK_MS:
            way = "ahead of" if seen["offset_ms"] > 0 else "behind"
            found.append(
                HostFinding(
                    gravity="warning",
                    what=f"the clock of {name} is {abs(seen['offset_ms']) / 1000:.1f} s {way} the "
                    "head's: their logs do not line up",
                    hosts=(name,),
                    way_out=f"timedatectl set-ntp true on {name}",
                )
            )
    return found


def links(reports: Mapping[str, Report]) -> list[HostFinding]:
    if len(reports) < 2:
        return []
    found = []
    for name, report in reports.items():
        route = report.get("facts", {}).get("route", {})
        speed = route.get("speed_mbit_s")
        if speed is not None and speed < SLOW_MBIT_S:
            found.append(
                HostFinding(
                    gravity="warning",
                    what=f"{name} is linked by {route['interface']} at {speed} Mbit/s",
                    hosts=(name,),
                    way_out="see the cable and the switch: a sum over hosts waits for the slowest",
                )
            )
    return found


def room(reports: Mapping[str, Report]) -> list[HostFinding]:
    short = [
        name
        for name, report in reports.items()
        if (free := report.get("facts", {}).get("shared_memory_bytes")) is not None
        and free < SHARED_BYTES
    ]
    if not short:
        return []
    return [
        HostFinding(
            gravity="warning",
            what=f"less than {SHARED_BYTES >> 20} MiB are free in /dev/shm on {', '.join(short)}",
            hosts=tuple(short),
            way_out="docker run --shm-size=1g, or --disable-custom-all-reduce",
        )
    ]
