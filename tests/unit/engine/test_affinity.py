"""Ranks that share a machine get cores of their own, whole ones first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from isobit.runtime.affinity import by_distance, share_of

EIGHT = {cpu: [cpu % 4, cpu % 4 + 4] for cpu in range(8)}


def test_hyperthreads_come_after_all_cores():
    assert by_distance(range(8), EIGHT) == [0, 1, 2, 3, 4, 5, 6, 7]
    paired = {cpu: [cpu - cpu % 2, cpu - cpu % 2 + 1] for cpu in range(6)}
    assert by_distance(range(6), paired) == [0, 2, 4, 1, 3, 5]
    assert by_distance([3, 9], {}) == [3, 9]


@pytest.mark.parametrize(("ranks", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1)])
def test_shares_are_disjoint(ranks, threads):
    shares = [share_of(range(8), ranks, rank, threads) for rank in range(ranks)]
    assert all(len(share) == threads for share in shares)
    assert len({cpu for share in shares for cpu in share}) == ranks * threads


def bound(ranks: int, local_rank: int, threads: int) -> list[list[int]]:
    """The CPUs that pin() names and those that the process has then."""
    code = (
        "import os; from isobit.runtime.affinity import pin;"
        f"print(pin({ranks}, {local_rank}, {threads}), sorted(os.sched_getaffinity(0)), sep=';')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [[int(n) for n in part.strip("[]\n").split(",") if n] for part in out.stdout.split(";")]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux binds processes to CPUs")
def test_a_process_is_bound_only_when_there_is_room():
    here = sorted(os.sched_getaffinity(0))
    assert bound(1, 0, len(here)) == [[], here]
    assert bound(len(here) + 1, 0, 1) == [[], here]
    if len(here) > 1:
        first, second = bound(2, 0, 1), bound(2, 1, 1)
        assert first[0] == first[1] and second[0] == second[1]
        assert len(first[0]) == 1 and first[0] != second[0]
