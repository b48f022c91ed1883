"""The rule by which one verdict is chosen, and the list of what is known to be bad."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from isobit.findings import Finding, Verdict
from isobit.runtime.doctor.diagnosis import Diagnosis, decisive, is_certain
from isobit.runtime.doctor.findings import CheckResult, skipped
from isobit.runtime.doctor.known_bad import FILE, known_bad
from isobit.shard.inspect.alignment import alignment

MACHINE: dict[str, Any] = {
    "gpus": [],
    "iommu_groups": 0,
    "acs": None,
    "packages": {"ray": "2.60.0"},
    "ray": {"auth_token": False, "auth_mode": None},
    "variables": {},
}


def fault(verdict: Verdict, confidence: Any = "high", what: str = "") -> Finding:
    return Finding(
        check="c", severity="error", verdict=verdict, what=what or verdict, confidence=confidence
    )


def result(*findings: Finding) -> CheckResult:
    return CheckResult(name="c", seconds=0.0, findings=findings)


@pytest.mark.parametrize(
    ("findings", "wanted"),
    [
        ([fault("collective-fault"), fault("kernel-fault", "medium")], "kernel-fault"),
        ([fault("environment", "low"), fault("collective-fault", "medium")], "collective-fault"),
        ([fault("environment", "low")], "environment"),
        ([fault("shard-fault", "medium", "a"), fault("shard-fault", "high", "b")], "b"),
        ([fault("shard-fault", "high", "a"), fault("shard-fault", "high", "b")], "a"),
    ],
)
def test_the_cause_goes_before_what_it_leads_to(findings, wanted):
    found = decisive([result(finding) for finding in findings])
    assert found is not None and wanted in (found.verdict, found.what)


def test_warnings_leave_a_model_healthy():
    warning = Finding(check="c", severity="warning", what="odd")
    assert decisive([result(warning)]) is None


def test_a_verdict_is_certain_only_where_nothing_can_precede_it():
    found = fault("shard-fault")
    assert is_certain(found, ["shard-fault", "collective-fault"])
    assert not is_certain(found, ["kernel-fault", "collective-fault"])
    assert not is_certain(fault("shard-fault", "medium"), ["collective-fault"])
    assert not is_certain(None, [])


def test_health_is_as_certain_as_what_was_checked():
    whole = Diagnosis(case={}, checks=(result(),), decisive=None)
    part = Diagnosis(case={}, checks=(result(skipped("c", "no time")),), decisive=None)
    levels = [each.report()["confidence"]["level"] for each in (whole, part)]
    assert levels == ["high", "medium"]


def test_every_entry_of_the_known_bad_list_names_its_source():
    entries = json.loads(FILE.read_text())
    assert all(entry["source"] and entry["remedy"] and entry["what"] for entry in entries)


@pytest.mark.parametrize(
    ("changed", "count"),
    [
        ({}, 0),
        ({"ray": {"auth_token": True, "auth_mode": None}}, 1),
        ({"ray": {"auth_token": True, "auth_mode": "token"}}, 0),
        ({"ray": {"auth_token": True, "auth_mode": None}, "packages": {"ray": "2.9.3"}}, 0),
        ({"gpus": [{"name": "NVIDIA GeForce RTX 3090"}] * 2}, 1),
        ({"gpus": [{"name": "NVIDIA GeForce RTX 3090"}] * 2, "iommu_groups": 9}, 2),
        ({"gpus": [{"name": "NVIDIA GeForce RTX 3090"}]}, 0),
    ],
)
def test_what_is_known_to_be_bad_is_recognized(changed, count):
    assert len(known_bad({**MACHINE, **changed})) == count


def quantized(groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Spread of codes and scales of Gaussian weights [256, groups * 32] by the absolute maximum."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(256, groups, 32, generator=generator)
    scales = weights.abs().amax(2) / 7
    return (weights / scales[:, :, None]).round().std(2), scales


def test_scales_beside_their_own_codes_are_aligned():
    found = alignment(*quantized(6))
    assert found is not None
    assert found.own < -0.5
    assert found.foreign == ()


def test_swapped_scales_are_named_by_both_groups():
    spread, scales = quantized(6)
    found = alignment(spread, scales[:, [0, 1, 3, 2, 4, 5]])
    assert found is not None
    assert [each[:2] for each in found.foreign] == [(2, 3), (3, 2)]


def test_scales_of_another_weight_fit_nowhere():
    found = alignment(quantized(6)[0], quantized(6)[1].flip(0))
    assert found is not None
    assert abs(found.own) < 0.15
    assert found.foreign == ()
