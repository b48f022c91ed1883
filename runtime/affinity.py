"""Which cores a rank's threads run on when ranks share a machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .ranks.launcher import cores

TOPOLOGY = Path("/sys/devices/system/cpu")


def share_of(cpus: Sequence[int], ranks: int, local_rank: int, threads: int) -> list[int]:
    """The part of some logical CPUs that one of `ranks` ranks gets, `threads` of them."""
    assert ranks * threads <= len(cpus)
    return list(cpus[local_rank * threads : (local_rank + 1) * threads])


def by_distance(cpus: Sequence[int], siblings: Mapping[int, Sequence[int]]) -> list[int]:
    """Logical CPUs, one of each core first and their hyperthreads after all of these."""
    return sorted(cpus, key=lambda cpu: (sorted(siblings.get(cpu, [cpu])).index(cpu), cpu))


def share_cores(hosts: Sequence[str], rank: int, threads: int = 0) -> tuple[int, list[int]]:
    """How many threads a rank computes with, and the CPUs that it is now bound to.

    `hosts` names the host of every rank. `threads` 0 shares the cores of a host evenly. Threads
    asked for by number may be part of a machine that others use as well: nothing is bound then.
    """
    if threads:
        return threads, []
    neighbours = [other for other, host in enumerate(hosts) if host == hosts[rank]]
    share = max(1, cores() // len(neighbours))
    return share, pin(len(neighbours), neighbours.index(rank), share)


def pin(ranks: int, local_rank: int, threads: int) -> list[int]:
    """Bind this process to its share of the machine; returns the CPUs, none when it is not bound.

    A rank alone on its machine is not bound, nor are ranks that together have more threads than
    there are CPUs.
    """
    if not hasattr(os, "sched_setaffinity") or ranks == 1:
        return []
    available = sorted(os.sched_getaffinity(0))
    if ranks * threads > len(available):
        return []
    siblings = {cpu: _siblings(cpu) for cpu in available}
    own = share_of(by_distance(available, siblings), ranks, local_rank, threads)
    os.sched_setaffinity(0, own)
    return own


def _siblings(cpu: int) -> list[int]:
    path = TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    try:
        text = path.read_text()
    except OSError:
        return [cpu]
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found
