"""Whether `isobit gpu check` has passed on the GPUs of this machine: what `--device auto` asks.

The record lies in the user's cache folder and holds for what it was made with alone: the same GPUs,
the same NVIDIA driver, the same versions of isobit, torch and triton, the same kernels.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..shard.checkpoint.write_file import write_beside

RECORD = "gpu-check.json"
_PACKAGE = Path(__file__).parent.parent
_KERNELS = ("kernels/gpu", "runtime/collectives/cuda")
_DRIVER = Path("/proc/driver/nvidia/version")


def record_path() -> Path:
    """`$XDG_CACHE_HOME/isobit/gpu-check.json`, or the same below ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "isobit" / RECORD


def gpu_names() -> list[str]:
    """Every CUDA device that torch sees, as "NVIDIA GeForce RTX 3090 GPU-5f3b...", sorted."""
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return sorted(f"{one.name} {one.uuid}" for one in found)


def software() -> dict[str, str]:
    """What the bits of a kernel depend on besides the GPU; "" for what is not there."""
    digest = hashlib.sha256()
    for folder in _KERNELS:
        for file in sorted((_PACKAGE / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return {
        "driver": driver_version(),
        "kernels": digest.hexdigest()[:16],
        **{name: _version(name) for name in ("isobit", "torch", "triton")},
    }


def driver_version() -> str:
    """The version of the kernel's NVIDIA module, as 550.54.15; "" where there is none."""
    try:
        words = _DRIVER.read_text().partition("\n")[0].split()
    except OSError:
        return ""
    numbers = [word for word in words if word[0].isdigit() and "." in word]
    return numbers[0] if numbers else ""


def remember_passed(gpus: list[str], at: str) -> Path:
    """Write the record: the check has passed on `gpus`, at a time in words."""
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"gpus": sorted(gpus), "software": software(), "passed": at}
    write_beside(path, json.dumps(record, indent=1) + "\n")
    return path


def forget_passed() -> None:
    """Remove the record, since the check has failed."""
    record_path().unlink(missing_ok=True)


def why_not_passed() -> str:
    """Why the check does not count as passed for the GPUs that are visible; "" if it does."""
    try:
        record: dict[str, Any] = json.loads(record_path().read_text())
        known, made_with = set(record["gpus"]), dict(record["software"])
    except (OSError, ValueError, KeyError, TypeError):
        return "isobit gpu check has not passed on this machine"
    if new := [name for name in gpu_names() if name not in known]:
        return f"isobit gpu check has not passed on {', '.join(new)}"
    now = software()
    changed = [
        f"{name} {made_with.get(name) or 'none'} -> {now[name] or 'none'}"
        for name in now
        if made_with.get(name) != now[name]
    ]
    return f"isobit gpu check passed before {', '.join(changed)}" if changed else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
