"""Sums over shared memory: numpy's bits at every degree; no fault hangs or stays unnamed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from .groups import run_groups

ONE_SHOT, TWO_SHOT = 1 << 40, 0
SETTINGS = [
    {"slot_bytes": slot, "two_shot_bytes": two_shot}
    for slot in (1024, 1 << 20)
    for two_shot in (ONE_SHOT, TWO_SHOT, 2000)
]
DEGREES = (1, 2, 3, 4, 5, 8)
TROUBLES = {
    "killed": {"trouble": "killed", "degree": 3, "two_shot": ONE_SHOT},
    "killed before its stripe": {"trouble": "killed", "degree": 2, "two_shot": TWO_SHOT},
    "stopped": {"trouble": "stopped", "degree": 3, "two_shot": ONE_SHOT, "timeouts": {"0": 0.5}},
    "left": {"trouble": "left", "degree": 2, "two_shot": ONE_SHOT},
    "size": {"trouble": "size", "degree": 3, "two_shot": ONE_SHOT},
    "site": {"trouble": "site", "degree": 2, "two_shot": ONE_SHOT},
    "operation": {"trouble": "operation", "degree": 2, "two_shot": TWO_SHOT},
}


def segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("isobit-*")}  # noqa: S108


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[Any]]:
    jobs: dict[str, dict[str, Any]] = {
        str(degree): {"scenario": "sums", "degree": degree, "settings": SETTINGS}
        for degree in DEGREES
    }
    jobs |= {name: {"scenario": "trouble", **job} for name, job in TROUBLES.items()}
    before = segments()
    found = run_groups(tmp_path_factory.mktemp("shared"), jobs)
    # Other engines may be starting: their objects have a name for a moment only.
    deadline = time.monotonic() + 60
    while (left := segments() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return {**found, "left over": sorted(left)}


@pytest.mark.parametrize("degree", DEGREES)
def test_every_way_through_the_code_gives_the_tree_on_every_rank(degree, results):
    assert results[str(degree)] == [[]] * degree


def test_nothing_is_left_in_dev_shm_after_kills(results):
    assert results["left over"] == []


def third_call(results: dict[str, list[Any]], name: str) -> list[tuple[str, str, float]]:
    """How the third call ended on each rank that could tell; the fourth failed at once."""
    faults = []
    for calls in results[name]:
        if calls is None:
            continue
        assert calls[:2] == [None, None]
        assert calls[3][:2] == calls[2][:2]
        faults.append(tuple(calls[2]))
    return faults


@pytest.mark.parametrize("name", ["killed", "killed before its stripe"])
def test_a_killed_rank_is_named_before_anybody_has_waited_long(name, results):
    """It is not E-COLL-TIMEOUT, as after 30 s."""
    faults = third_call(results, name)
    victim = len(faults)
    assert victim == TROUBLES[name]["degree"] - 1
    for code, message, _ in faults:
        assert code == "E-COLL-FAILED"
        assert (
            "all_reduce number 3 of 64 bytes at layers.3.out: "
            f"rank {victim} has died (its last call: all_reduce number 2 of 64 bytes"
        ) in message


def test_a_stopped_rank_is_named_at_the_timeout_and_fails_when_it_goes_on(results):
    faults = third_call(results, "stopped")
    assert len(faults) == 3
    for code, message, _ in faults:
        assert code == "E-COLL-TIMEOUT"
        assert (
            "all_reduce number 3 of 64 bytes at layers.3.out: no answer within 0.5 s from rank 2 "
            "(its last call: all_reduce number 2 of 64 bytes at layers.2.out)"
        ) in message
    assert faults[0][2] > 0.4


def test_a_failure_of_one_rank_is_one_of_all_long_before_their_own_timeouts(results):
    """Rank 1 would have waited for the stopped one for 30 s, and said so itself."""
    _, message, _ = third_call(results, "stopped")[1]
    assert message.startswith("rank 1: found by rank 0: ")


def test_a_rank_that_closed_is_named(results):
    waiting, closed = results["left"]
    assert waiting[2][0] == closed[2][0] == "E-COLL-FAILED"
    assert "rank 1 has left" in waiting[2][1]
    assert closed[2][1] == "rank 1: these collectives are closed"


def test_calls_of_different_sizes_are_a_fault_on_every_rank(results):
    faults = third_call(results, "size")
    assert len(faults) == 3
    for code, message, _ in faults:
        assert code == "E-COLL-MISMATCH"
        assert "all_reduce number 3 of 64 bytes at layers.3.out" in message
        assert "all_reduce number 3 of 96 bytes at layers.3.out" in message
        assert "rank 2 " in message


def test_calls_for_different_sites_are_a_fault_on_every_rank(results):
    faults = third_call(results, "site")
    assert [code for code, _, _ in faults] == ["E-COLL-MISMATCH"] * 2
    for _, message, _ in faults:
        assert "all_reduce number 3 of 64 bytes at layers.3.out" in message
        assert "all_reduce number 3 of 64 bytes at layers.4.out" in message


def test_different_operations_are_a_fault_on_every_rank(results):
    faults = third_call(results, "operation")
    assert len(faults) == 2
    for code, message, _ in faults:
        assert code == "E-COLL-MISMATCH"
        assert "rank 1" in message
        assert "all_gather number 3 of 64 bytes at layers.3.out" in message
        assert "all_reduce number 3 of 64 bytes at layers.3.out" in message
