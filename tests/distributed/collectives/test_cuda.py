"""The collectives of CUDA ranks as processes: bits, faults, and what is chosen why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .groups import run_groups

MODES = ["auto", "custom", "gather", "library"]
FEW = ["auto", "custom"]
JOBS: dict[str, dict[str, Any]] = {
    "sums of 2": {"scenario": "sums", "degree": 2},
    "sums of 3": {"scenario": "sums", "degree": 3},
    "late": {"scenario": "trouble", "degree": 3, "trouble": "late", "timeouts": {"0": 0.5}},
    "size": {"scenario": "trouble", "degree": 2, "trouble": "size"},
    "site": {"scenario": "trouble", "degree": 2, "trouble": "site"},
    "together": {"scenario": "choice", "degree": 2, "modes": MODES, "whole_self_test": True},
    "alone": {"scenario": "choice", "degree": 1, "modes": ["auto", "gather"]},
    "apart": {"scenario": "choice", "degree": 2, "modes": FEW, "apart": "rank 1 is elsewhere"},
    "unreachable": {"scenario": "choice", "degree": 2, "modes": ["auto"], "trouble": "apart"},
    "told not to": {
        "scenario": "choice",
        "degree": 2,
        "modes": ["auto"],
        "environment": {"NCCL_P2P_DISABLE": "1"},
    },
    "blind later": {
        "scenario": "choice",
        "degree": 2,
        "modes": ["auto"],
        "trouble": "blind later",
        "self_test_s": 2,
    },
    **{
        trouble: {"scenario": "choice", "degree": 2, "modes": ["auto"], "trouble": trouble}
        for trouble in ("blind", "faults", "kills")
    },
    "hangs": {
        "scenario": "choice",
        "degree": 2,
        "modes": ["auto"],
        "trouble": "hangs",
        "probe_s": 1,
    },
    "refused": {"scenario": "choice", "degree": 2, "modes": FEW, "trouble": "refused"},
    "one GPU": {"scenario": "choice", "degree": 2, "modes": MODES, "one_gpu": True},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[Any]]:
    return run_groups(tmp_path_factory.mktemp("cuda"), JOBS, "cuda_ranks")


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("way", ["gather", "peer memory", "host memory"])
def test_every_way_gives_the_bits_of_the_tree(degree: int, way: str, results) -> None:
    for found in results[f"sums of {degree}"]:
        assert found[way] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ranks_that_share_a_gpu_add_up_the_tree_there(tmp_path: Path) -> None:
    """The same calls over the memory of the device and of the host, through the CUDA driver."""
    jobs = {f"sums of {degree}": JOBS[f"sums of {degree}"] for degree in (2, 3)}
    found = run_groups(tmp_path, jobs, "cuda_ranks", {"ISOBIT_TEST_CARD": "1"})
    for ranks in found.values():
        for rank in ranks:
            assert rank == {"peer memory": [], "host memory": [], "probe": ""}


def test_closing_unmaps_once_and_leaves_no_name_behind(results) -> None:
    for found in results["sums of 3"]:
        assert found["peer memory closed"] == 2
        assert found["host memory closed"] == 1
    assert not list(Path("/dev/shm").glob("isobit-*"))  # noqa: S108


def test_a_late_rank_is_named_and_ends_the_calls_of_all(results) -> None:
    first, second, late = results["late"]
    assert first[:2] == second[:2] == late[:2] == [None, None]
    code, message, _ = first[2]
    assert code == "E-COLL-TIMEOUT"
    assert "rank 0: layers.3.out" in message
    assert message.endswith("rank 2 did not come within 0.5 s")
    # The others had all they needed for that sum; the next one tells them.
    assert second[3][0] == late[3][0] == "E-COLL-FAILED"
    assert all("rank 0 has given up" in found[3][1] for found in (second, late))
    assert first[3][:2] == first[2][:2]


@pytest.mark.parametrize("trouble", ["size", "site"])
def test_ranks_in_different_calls_are_told_so(trouble: str, results) -> None:
    codes = {found[2][0] for found in results[trouble]}
    assert codes <= {"E-COLL-MISMATCH", "E-COLL-FAILED"} and "E-COLL-MISMATCH" in codes
    assert any("makes another call" in found[2][1] for found in results[trouble])


def test_each_mode_gives_itself_and_auto_reads_the_memory_of_peers(results) -> None:
    for auto, custom, gather, library in results["together"]:
        assert auto[:2] == ["custom", "all ranks share a host, over peer memory"]
        assert custom[:2] == ["custom", "asked for, over peer memory"]
        assert auto[2].startswith("passed in ")
        assert gather[:2] == ["gather", "asked for"]
        assert library[0] == "library" and not library[3]
        assert auto[3] and custom[3] and gather[3]
    for auto, gather in results["alone"]:
        assert auto[:2] == ["gather", "a single rank"] and gather[0] == "gather"


def test_ranks_on_different_hosts_gather(results) -> None:
    for auto, custom in results["apart"]:
        assert auto[:2] == ["gather", "rank 1 is elsewhere"]
        assert custom[0] == "E-COLL-CUSTOM"


def test_cards_that_cannot_read_each_other_meet_in_the_memory_of_the_host(results) -> None:
    for (auto,) in results["unreachable"]:
        assert auto[0] == "custom"
        assert auto[1] == (
            "all ranks share a host, over host memory since rank 0: cuda:0 cannot read the memory "
            "of rank 1 (cuda:1); rank 1: cuda:1 cannot read the memory of rank 0 (cuda:0)"
        )
    for (auto,) in results["told not to"]:
        assert auto[1].endswith("over host memory since rank 0: NCCL_P2P_DISABLE is set")


def test_peer_memory_that_fails_its_self_test_is_left_with_the_way_out(results) -> None:
    for (auto,) in results["blind later"]:
        assert auto[0] == "custom" and auto[2].startswith("passed in ")
        for part in ("over host memory", "E-COLL-SELF-TEST", "did not come", "ACS", "iommu=pt"):
            assert part in auto[1]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("blind", "not what was written: 0 received from rank 1"),
        ("faults", "memory of rank 1: CUDA error: an illegal memory access was encountered"),
        ("kills", "the probe was killed by signal 9"),
        ("hangs", "no answer to a probe within 1 s"),
    ],
)
def test_a_child_meets_the_faults_of_peer_memory_and_ranks_go_on(
    trouble: str, said: str, results
) -> None:
    for (auto,) in results[trouble]:
        assert auto[0] == "custom" and auto[2].startswith("passed in ")
        assert f"over host memory since peer memory failed: E-COLL-CUDA rank 0: {said}" in auto[1]
        assert "iommu=pt" in auto[1]


def test_where_no_memory_can_be_shared_ranks_gather_and_say_why(results) -> None:
    for auto, custom in results["refused"]:
        assert auto[0] == "gather" and custom[0] == "E-COLL-CUSTOM"
        for text in (auto[1], custom[1]):
            assert "peer memory failed: E-COLL-CUDA rank 0: memory of rank 1" in text
            assert "host memory failed: E-COLL-SHM rank 0: cuMemHostRegister_v2" in text


def test_two_ranks_on_one_gpu_never_reach_nccl(results) -> None:
    for auto, custom, gather, library in results["one GPU"]:
        assert auto[0] == custom[0] == "custom"
        for refused in (gather, library):
            assert refused[0] == "E-COLL-NCCL"
            assert "ranks 0, 1 share the GPU GPU-0" in refused[1]
