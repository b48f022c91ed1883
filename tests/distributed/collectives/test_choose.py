"""All ranks choose the same collectives, and none that fail their self-test."""

from __future__ import annotations

from typing import Any

import pytest

from .groups import run_groups

MODES = ["auto", "custom", "hierarchical", "gather", "library"]
HUGE = {"slot_bytes": 1 << 44}
JOBS: dict[str, dict[str, Any]] = {
    "alone": {"degree": 1, "modes": MODES, "nodes": [1]},
    "together": {"degree": 2, "modes": MODES, "nodes": [1, 1]},
    "uneven": {"degree": 3, "modes": ["auto"], "nodes": [2, 2, 1]},
    "apart": {"degree": 2, "modes": ["auto", "custom"], "nodes": [1, 1], "hosts": [1, 1]},
    "two hosts": {"degree": 3, "modes": MODES, "nodes": [2, 2, 1], "hosts": [2, 1]},
    "small": {"degree": 2, "modes": ["auto", "custom"], "nodes": [1, 1], "settings": HUGE},
    "stale": {"degree": 2, "modes": ["auto", "custom"], "nodes": [1, 1], "fault": "stale"},
    "tail": {"degree": 3, "modes": ["auto", "custom"], "nodes": [2, 2, 1], "fault": "tail"},
    "tail of two hosts": {
        "degree": 3,
        "modes": ["auto", "hierarchical"],
        "nodes": [2, 2, 1],
        "hosts": [1, 2],
        "fault": "tail",
    },
    "at odds": {"degree": 2, "modes": ["auto,gather"], "nodes": [1, 1]},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[Any]]:
    jobs = {name: {"scenario": "choice", **job} for name, job in JOBS.items()}
    return run_groups(tmp_path_factory.mktemp("choose"), jobs)


@pytest.mark.parametrize("name", ["alone", "together", "uneven"])
def test_each_mode_gives_itself_and_auto_the_custom_one_where_there_are_ranks(name, results):
    for found in results[name]:
        names = [chosen[0] for chosen in found]
        assert names == ["gather" if name == "alone" else "custom", *JOBS[name]["modes"][1:]]
        assert [chosen[3] for chosen in found] == [mode != "library" for mode in names]


def test_the_self_test_runs_before_first_use(results):
    for auto, custom, hierarchical, gather, library in results["together"]:
        assert all(each[2].startswith("passed in ") for each in (auto, custom, hierarchical))
        assert gather[2] == library[2] == "not run"


def test_ranks_that_each_have_a_host_gather(results):
    for auto, custom in results["apart"]:
        assert auto[:2] == ["gather", "no two ranks share a host"]
        assert custom[0] == "E-COLL-CUSTOM"
        assert "ranks are on 2 hosts (1 + 1 ranks)" in custom[1]


def test_auto_is_hierarchical_where_some_ranks_share_a_host(results):
    for auto, custom, hierarchical, gather, library in results["two hosts"]:
        assert auto[:2] == ["hierarchical", "ranks are on 2 hosts (2 + 1 ranks)"]
        assert auto[2].startswith("passed in ") and auto[3]
        assert custom[0] == "E-COLL-CUSTOM"
        assert [each[0] for each in (hierarchical, gather, library)] == MODES[2:]


def test_too_little_shared_memory_is_named_with_numbers_and_the_way_out(results):
    for auto, custom in results["small"]:
        assert (auto[0], custom[0]) == ("gather", "E-COLL-SHM")
        for text in (auto[1], custom[1]):
            assert "2 ranks need 67108864." in text
            assert "MiB are free" in text
            assert "docker run --shm-size" in text


@pytest.mark.parametrize(("name", "degree"), [("stale", 2), ("tail", 3), ("tail of two hosts", 3)])
def test_one_rank_that_sums_wrongly_makes_all_ranks_gather(name, degree, results):
    for auto, custom in results[name]:
        assert auto[0] == "gather"
        assert custom[0] == "E-COLL-SELF-TEST"
        for text in (auto[1], auto[2], custom[1]):
            assert f"rank {degree - 1}: all_reduce number " in text
            assert "differ from gathering" in text


def test_ranks_told_different_modes_are_an_error_on_all(results):
    for (found,) in results["at odds"]:
        assert found == [
            "E-COLL-MODE",
            "ranks were given different collectives: rank 0: auto, rank 1: gather",
        ]
