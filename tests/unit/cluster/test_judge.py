"""What `isobit cluster check` finds in reports of hosts, each made up with one thing wrong."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from isobit.launch.cli.cluster.rows import rows_of
from isobit.launch.cluster.check.judge import judge
from isobit.runtime.model_files.manifest import Manifest, ModelFile

VERSIONS = {
    "python": "3.11.7",
    "isobit": "0.1.0",
    "isobit source": "aaaaaaaaaaaa",
    "ray": "2.60.0",
    "torch": "2.13.0",
}
CONFIG = ModelFile(name="config.json", kind="config", size=700, quick="c" * 64)
WEIGHTS = ModelFile(name="model.safetensors", kind="weights", size=5 << 20, quick="w" * 64)
TOKENIZER = ModelFile(name="tokenizer.json", kind="tokenizer", size=90, quick="t" * 64)
MODEL = Manifest(files=(CONFIG, WEIGHTS, TOKENIZER))
CARD = {"name": "NVIDIA GeForce RTX 3090", "memory.total": "24576 MiB", "driver_version": "570.1"}
DEVICE = {"name": CARD["name"], "memory": 24 << 30}


def host(number: int) -> dict[str, Any]:
    return {
        "host": f"box-{number} (10.0.0.{number})",
        "node": f"id{number}",
        "address": f"10.0.0.{number}",
        "state": "alive",
        "head": number == 1,
        "ray": {"CPU": 16.0, "GPU": 2.0},
        "versions": dict(VERSIONS),
        "facts": {
            "gpus": [dict(CARD), dict(CARD)],
            "memory_bytes": 60 << 30,
            "shared_memory_bytes": 30 << 30,
            "disk_bytes": 400 << 30,
            "torch": {
                "version": "2.13.0",
                "devices": [{**DEVICE, "peers": [1]}, {**DEVICE, "peers": [0]}],
            },
            "kernels": {"isa": "avx2", "vnni": "no"},
            "model": MODEL.to_dict(),
            "trouble": [],
            "route": {"address": f"10.0.0.{number}", "interface": "eth0", "speed_mbit_s": 10000},
        },
        "peers": {
            f"id{other}": {"round_trip_ms": 0.1, "offset_ms": 0.0}
            for other in (1, 2, 3)
            if other != number
        },
        "clock": {"offset_ms": 0.0, "error_ms": 0.05},
    }


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    return [host(number) for number in (1, 2, 3)]


def found(reports: list[dict[str, Any]], **told: Any) -> list[tuple[str, str]]:
    return [(f.severity, f.what) for f in judge(reports, VERSIONS, MODEL, **told)]


def odd(reports: list[dict[str, Any]]) -> dict[str, tuple[bool, ...]]:
    return {row.name: row.odd for row in rows_of(reports) if any(row.odd)}


def test_equal_hosts_are_ready_and_no_cell_is_marked(reports):
    assert found(reports, hosts=3) == []
    assert odd(reports) == {}


@pytest.mark.parametrize("package", ["isobit", "ray", "torch", "python", "isobit source"])
def test_another_version_is_named_with_its_host_and_the_drivers(reports, package):
    reports[2]["versions"][package] = "0.0.9"
    ((severity, what),) = found(reports)
    assert severity == "error"
    assert f"0.0.9 on box-3 (10.0.0.3); the driver has {VERSIONS[package]}" in what
    assert list(odd(reports).values()) == [(False, False, True)]


def test_another_isobit_is_one_finding_though_its_source_differs_too(reports):
    reports[1]["versions"] |= {"isobit": "0.0.9", "isobit source": "bbbbbbbbbbbb"}
    assert len(found(reports)) == 1


def test_hosts_alike_that_all_differ_from_the_driver(reports):
    for report in reports:
        report["versions"]["isobit"] = "0.2.0"
    ((severity, what),) = found(reports)
    assert severity == "error"
    assert all(report["host"] in what for report in reports)
    assert odd(reports) == {}, "they do not differ from each other"


def without_facts(report: dict[str, Any], **told: Any) -> dict[str, Any]:
    return {k: v for k, v in report.items() if k not in ("facts", "peers", "clock")} | told


def test_a_host_without_isobit_is_one_finding(reports):
    versions = VERSIONS | {"isobit": "not installed"}
    reports[1] = without_facts(reports[1], versions=versions, error="No module named isobit")
    assert found(reports) == [
        ("error", "isobit not installed on box-2 (10.0.0.2); the driver has 0.1.0"),
    ]


def test_a_host_that_does_not_answer(reports):
    reports[1] = without_facts(reports[1], error="no answer within 120 s")
    assert found(reports) == [
        ("error", "box-2 (10.0.0.2) cannot be asked: no answer within 120 s"),
    ]


def test_a_dead_host_and_one_that_never_joined(reports):
    reports[2] = without_facts(reports[2], state="dead")
    del reports[2]["versions"]
    missing, dead = found(reports, hosts=4)
    assert missing == ("error", "2 of 4 hosts are there: box-1 (10.0.0.1), box-2 (10.0.0.2)")
    assert dead == ("error", "box-3 (10.0.0.3) has left the cluster")


def test_another_instruction_set_breaks_the_promise_of_bits(reports):
    reports[1]["facts"]["kernels"] = {"isa": "avx512_bf16", "vnni": "yes"}
    ((severity, what),) = found(reports)
    assert severity == "error"
    assert "avx512_bf16, vnni yes on box-2" in what


@pytest.mark.parametrize("part", ["torch", "kernels"])
def test_what_cannot_be_loaded(reports, part):
    reports[0]["facts"][part] = {"error": "no such symbol"}
    assert ("error", f"{part} cannot be loaded on box-1 (10.0.0.1): no such symbol") in found(
        reports
    )


def test_torch_without_cuda_on_a_box_with_cards(reports):
    reports[1]["facts"]["torch"] = {"version": "2.13.0+cpu", "devices": []}
    assert found(reports) == [("error", "torch 2.13.0+cpu sees 0 of 2 GPUs on box-2 (10.0.0.2)")]


def test_ray_that_offers_fewer_cards_than_there_are(reports):
    reports[1]["ray"]["GPU"] = 1.0
    ((severity, what),) = found(reports)
    assert (severity, what) == (
        "warning",
        "Ray offers 1 GPUs on box-2 (10.0.0.2), the NVIDIA driver lists 2",
    )


def test_cards_out_of_each_others_reach_are_a_note(reports):
    for device in reports[0]["facts"]["torch"]["devices"]:
        device["peers"] = []
    ((severity, what),) = found(reports)
    assert severity == "note"
    assert "(0 -> 1, 1 -> 0)" in what


def test_cards_of_another_kind(reports):
    for gpu in reports[2]["facts"]["gpus"]:
        gpu["name"] = "NVIDIA GeForce RTX 4090"
    ((severity, what),) = found(reports)
    assert severity == "warning"
    assert "RTX 4090 on box-3" in what
    assert odd(reports) == {"GPUs": (False, False, True)}


def test_two_hosts_out_of_each_others_reach(reports):
    reports[1]["peers"]["id3"] = {"error": "timed out"}
    assert found(reports) == [
        (
            "error",
            "box-2 (10.0.0.2) cannot open a TCP connection to box-3 (10.0.0.3) (timed out)",
        )
    ]


@pytest.mark.parametrize(
    ("offset", "error", "says"),
    [(2500.0, 1.0, "2.5 s ahead of"), (-61000.0, 1.0, "61.0 s behind"), (1500.0, 600.0, None)],
)
def test_a_clock_is_off_when_it_is_so_beyond_the_error_bar(reports, offset, error, says):
    reports[1]["clock"] = {"offset_ms": offset, "error_ms": error}
    warnings = found(reports)
    assert [severity for severity, _ in warnings] == ([] if says is None else ["warning"])
    assert says is None or says in warnings[0][1]


def test_a_slow_link(reports):
    reports[2]["facts"]["route"]["speed_mbit_s"] = 100
    assert found(reports) == [
        ("warning", "box-3 (10.0.0.3) is linked by eth0 at 100 Mbit/s"),
    ]


def test_dockers_shared_memory(reports):
    reports[0]["facts"]["shared_memory_bytes"] = 60 << 20
    ((severity, what),) = found(reports)
    assert (severity, "on box-1 (10.0.0.1)" in what) == ("warning", True)


def test_a_model_that_is_not_there(reports):
    reports[1]["facts"]["model"] = {"files": [], "error": "/models/m: no such folder"}
    assert found(reports) == [
        ("error", "the model on box-2 (10.0.0.2): /models/m: no such folder"),
    ]
    assert odd(reports) == {"model": (False, True, False)}


def test_a_model_with_another_config_and_without_weights(reports):
    other = dataclasses.replace(CONFIG, quick="d" * 64)
    reports[2]["facts"]["model"] = Manifest(files=(other, TOKENIZER)).to_dict()
    ((severity, what),) = found(reports)
    assert severity == "error"
    assert "config.json differs: SHA-256 dddddddddddd, the driver's cccccccccccc" in what
    assert "model.safetensors is missing (5242880 bytes)" in what


def test_another_tokenizer_concerns_no_rank(reports):
    other = dataclasses.replace(TOKENIZER, quick="u" * 64)
    reports[2]["facts"]["model"] = Manifest(files=(CONFIG, WEIGHTS, other)).to_dict()
    assert found(reports) == []
    assert odd(reports) == {}


def test_faults_come_first(reports):
    worse = copy.deepcopy(reports)
    worse[0]["facts"]["torch"]["devices"][0]["peers"] = []
    worse[0]["facts"]["shared_memory_bytes"] = 0
    worse[1]["versions"]["torch"] = "2.8.0"
    assert [severity for severity, _ in found(worse)] == ["error", "warning", "note"]


def test_known_trouble_names_every_host_once(reports):
    entry = {"what": "NCCL hangs", "remedy": "NCCL_P2P_DISABLE=1"}
    for report in reports[:2]:
        report["facts"]["trouble"] = [entry]
    assert found(reports) == [
        ("warning", "box-1 (10.0.0.1), box-2 (10.0.0.2): NCCL hangs"),
    ]
