"""Sums over hosts that are names only: numpy's bits wherever hosts are cut; a lost one is named."""

from __future__ import annotations

from typing import Any

import pytest

from .groups import run_groups

ONE_SHOT, TWO_SHOT = 1 << 16, 64
SETTINGS = [
    {"slot_bytes": 1024, "two_shot_bytes": ONE_SHOT},
    {"slot_bytes": 4096, "two_shot_bytes": TWO_SHOT},
]
# Hosts as numbers of ranks, then atoms. Cuts of 1 + 3 and 3 + 2 lie inside subtrees.
CUTS = {
    "1+1": ([1, 1], 8),
    "2+1": ([2, 1], 8),
    "2+2": ([2, 2], 8),
    "1+3": ([1, 3], 8),
    "1+1+1": ([1, 1, 1], 8),
    "3+2": ([3, 2], 8),
    "3+2 of 16 atoms": ([3, 2], 16),
    "2+1+2": ([2, 1, 2], 16),
    "all on one": ([3], 8),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[Any]]:
    jobs: dict[str, dict[str, Any]] = {
        name: {
            "scenario": "several_hosts",
            "degree": sum(hosts),
            "hosts": hosts,
            "atoms": atoms,
            "settings": SETTINGS,
        }
        for name, (hosts, atoms) in CUTS.items()
    }
    jobs["gone"] = {"scenario": "host_gone", "degree": 3, "hosts": [2, 1]}
    return run_groups(tmp_path_factory.mktemp("hosts"), jobs)


@pytest.mark.parametrize("name", CUTS)
def test_sums_over_hosts_are_the_tree_on_every_rank(name, results):
    assert results[name] == [[]] * sum(CUTS[name][0])


def test_a_host_that_ends_is_told_to_all_ranks_of_another_by_the_one_that_saw_it(results):
    (first, second, gone) = results["gone"]
    assert gone is None
    seen = "rank 0: gather between hosts number "
    for code, message in (first, second):
        assert code == "E-COLL-FAILED"
        assert seen in message and "at layers.2.out failed" in message
    assert first[1].startswith(seen)
    assert second[1].startswith("rank 1: found by rank 0: ")
