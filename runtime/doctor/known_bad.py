"""Versions and machines that are known to cause trouble: a data file with a source for each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "known_bad.json"


def known_bad(machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries that hold for a machine as `probes.machine` describes it."""
    return [entry for entry in json.loads(FILE.read_text()) if _holds(entry, machine)]


def _holds(entry: Mapping[str, Any], machine: Mapping[str, Any]) -> bool:
    if not _CONDITIONS[entry["only_if"]](machine):
        return False
    if "gpu" in entry:
        return any(entry["gpu"] in gpu.get("name", "") for gpu in machine["gpus"])
    if "iommu" in entry:
        return bool(machine["iommu_groups"]) or machine["acs"] is True
    found = machine["packages"].get(entry["package"])
    if found is None:
        return False
    least, most = entry.get("least"), entry.get("most")
    return (least is None or _numbers(found) >= _numbers(least)) and (
        most is None or _numbers(found) <= _numbers(most)
    )


def _numbers(version: str) -> list[int]:
    """2.13.0+cpu -> [2, 13, 0]."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]


_CONDITIONS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "auth_token_without_mode": lambda machine: (
        machine["ray"]["auth_token"] and machine["ray"]["auth_mode"] is None
    ),
    "ray_cluster": lambda machine: "RAY_ADDRESS" in machine["variables"],
    "several_gpus": lambda machine: len(machine["gpus"]) > 1,
}
