"""GPUs, network, clocks and shared memory of hosts."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.findings import Finding

from .facts import Report, cards, facts, ways_without_access

CLOCK_MS = 1000.0
SLOW_MBIT_S = 1000
SHARED_BYTES = 64 << 20
"""What 16 ranks may need for the custom collectives."""
MOST_NAMED = 6


def graphics(reports: Sequence[Report]) -> list[Finding]:
    """What Ray offers against what there is, cards out of each other's reach, mixed kinds."""
    found = []
    for report in reports:
        host, offered, listed = report["host"], round(report["ray"]["GPU"]), len(cards(report))
        if "facts" in report and offered != listed:
            found.append(
                Finding(
                    severity="warning",
                    what=f"Ray offers {offered} GPUs on {host}, the NVIDIA driver lists {listed}",
                    hosts=(host,),
                    remedy=f"there: ray start … --num-gpus={listed}",
                )
            )
        if missing := ways_without_access(report):
            pairs = ", ".join(f"{one} -> {other}" for one, other in missing[:MOST_NAMED])
            more = ", …" if len(missing) > MOST_NAMED else ""
            found.append(
                Finding(
                    severity="note",
                    what=f"GPUs of {host} cannot read each other's memory ({pairs}{more}): sums go "
                    "through the host's memory",
                    hosts=(host,),
                    remedy="none is needed; where NCCL hangs all the same, NCCL_P2P_DISABLE=1",
                )
            )
    kinds = {report["host"]: sorted(set(cards(report))) for report in reports if cards(report)}
    if len({kind for them in kinds.values() for kind in them}) > 1:
        found.append(
            Finding(
                severity="warning",
                what="different GPUs: "
                + "; ".join(f"{', '.join(them)} on {host}" for host, them in kinds.items()),
                remedy="the same bits are promised within one GPU architecture: see that all "
                "cards are of one",
            )
        )
    return found


def reach(reports: Sequence[Report]) -> list[Finding]:
    """Hosts that cannot open a connection to others."""
    found = []
    host_of = {report["node"]: report["host"] for report in reports}
    for report in reports:
        peers = report.get("peers", {})
        lost = [f"{host_of[n]} ({a['error']})" for n, a in peers.items() if "error" in a]
        if lost:
            found.append(
                Finding(
                    severity="error",
                    what=f"{report['host']} cannot open a TCP connection to {', '.join(lost)}",
                    hosts=(report["host"],),
                    remedy="open every TCP port between the hosts of the cluster, and none to "
                    "others (ufw allow from SUBNET); ip route get ADDRESS shows the way",
                )
            )
    return found


def clock(reports: Sequence[Report]) -> list[Finding]:
    """Clocks that are surely off."""
    found = []
    for report in reports:
        seen = report.get("clock")
        if seen is not None and abs(seen["offset_ms"]) - seen["error_ms"] > CLOCK_MS:
            way = "ahead of" if seen["offset_ms"] > 0 else "behind"
            found.append(
                Finding(
                    severity="warning",
                    what=f"the clock of {report['host']} is {abs(seen['offset_ms']) / 1000:.1f} s "
                    f"{way} the head's: their logs do not line up",
                    hosts=(report["host"],),
                    remedy="there: timedatectl set-ntp true",
                )
            )
    return found


def links(reports: Sequence[Report]) -> list[Finding]:
    """Slow links to the head."""
    if len(reports) < 2:
        return []
    return [
        Finding(
            severity="warning",
            what=f"{report['host']} is linked by {route['interface']} at {speed} Mbit/s",
            hosts=(report["host"],),
            remedy="see cable and switch: a sum over hosts waits for the slowest of them",
        )
        for report in reports
        if (speed := (route := facts(report).get("route", {})).get("speed_mbit_s")) is not None
        and speed < SLOW_MBIT_S
    ]


def room(reports: Sequence[Report]) -> list[Finding]:
    """Too little shared memory, as in a container with Docker's default."""
    short = [
        report["host"]
        for report in reports
        if (free := facts(report).get("shared_memory_bytes")) is not None and free < SHARED_BYTES
    ]
    if not short:
        return []
    return [
        Finding(
            severity="warning",
            what=f"less than {SHARED_BYTES >> 20} MiB are free in /dev/shm on {', '.join(short)}",
            hosts=tuple(short),
            remedy="docker run --shm-size=1g, or --disable-custom-all-reduce",
        )
    ]
