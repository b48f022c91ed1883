"""GPUs, network, clocks and shared memory of hosts."""

from __future__ import annotations

from collections.abc import Sequence

from .facts import Report, cards, facts, ways_without_access
from .finding import HostFinding

CLOCK_MS = 1000.0
SLOW_MBIT_S = 1000
SHARED_BYTES = 64 << 20
"""What 16 ranks may need for the custom collectives."""
MOST_NAMED = 6


def graphics(reports: Sequence[Report]) -> list[HostFinding]:
    """What Ray offers against what there is, cards out of each other's reach, mixed kinds."""
    found = []
    for report in reports:
        host, offered, listed = report["host"], round(report["ray"]["GPU"]), len(cards(report))
        if "facts" in report and offered != listed:
            found.append(
                HostFinding(
                    gravity="warning",
                    what=f"Ray offers {offered} GPUs on {host}, the NVIDIA driver lists {listed}",
                    hosts=(host,),
                    way_out=f"there: ray start … --num-gpus={listed}",
                )
            )
        if missing := ways_without_access(report):
            pairs = ", ".join(f"{one} -> {other}" for one, other in missing[:MOST_NAMED])
            more = ", …" if len(missing) > MOST_NAMED else ""
            found.append(
                HostFinding(
                    gravity="note",
                    what=f"GPUs of {host} cannot read each other's memory ({pairs}{more}): sums go "
                    "through the host's memory",
                    hosts=(host,),
                    way_out="none is needed; where NCCL hangs all the same, NCCL_P2P_DISABLE=1",
                )
            )
    kinds = {report["host"]: sorted(set(cards(report))) for report in reports if cards(report)}
    if len({kind for them in kinds.values() for kind in them}) > 1:
        found.append(
            HostFinding(
                gravity="warning",
                what="different GPUs: "
                + "; ".join(f"{', '.join(them)} on {host}" for host, them in kinds.items()),
                way_out="the same bits are promised within one GPU architecture: see that all "
                "cards are of one",
            )
        )
    return found


def reach(reports: Sequence[Report]) -> list[HostFinding]:
    """Hosts that cannot open a connection to others."""
    found = []
    host_of = {report["node"]: report["host"] for report in reports}
    for report in reports:
        peers = report.get("peers", {})
        lost = [f"{host_of[n]} ({a['error']})" for n, a in peers.items() if "error" in a]
        if lost:
            found.append(
                HostFinding(
                    gravity="fault",
                    what=f"{report['host']} cannot open a TCP connection to {', '.join(lost)}",
                    hosts=(report["host"],),
                    way_out="open every TCP port between the hosts of the cluster, and none to "
                    "others (ufw allow from SUBNET); ip route get ADDRESS shows the way",
                )
            )
    return found


def clock(reports: Sequence[Report]) -> list[HostFinding]:
    """Clocks that are surely off."""
    found = []
    for report in reports:
        seen = report.get("clock")
        if seen is not None and abs(seen["offset_ms"]) - seen["error_ms"] > CLOCK_MS:
            way = "ahead of" if seen["offset_ms"] > 0 else "behind"
            found.append(
                HostFinding(
                    gravity="warning",
                    what=f"the clock of {report['host']} is {abs(seen['offset_ms']) / 1000:.1f} s "
                    f"{way} the head's: their logs do not line up",
                    hosts=(report["host"],),
                    way_out="there: timedatectl set-ntp true",
                )
            )
    return found


def links(reports: Sequence[Report]) -> list[HostFinding]:
    """Slow links to the head."""
    if len(reports) < 2:
        return []
    return [
        HostFinding(
            gravity="warning",
            what=f"{report['host']} is linked by {route['interface']} at {speed} Mbit/s",
            hosts=(report["host"],),
            way_out="see cable and switch: a sum over hosts waits for the slowest of them",
        )
        for report in reports
        if (speed := (route := facts(report).get("route", {})).get("speed_mbit_s")) is not None
        and speed < SLOW_MBIT_S
    ]


def room(reports: Sequence[Report]) -> list[HostFinding]:
    """Too little shared memory, as in a container with Docker's default."""
    short = [
        report["host"]
        for report in reports
        if (free := facts(report).get("shared_memory_bytes")) is not None and free < SHARED_BYTES
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
