"""What the machine is: GPUs, how they reach each other, and the limits that sums run into."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ...runtime.checked_gpus import driver_version, gpu_names, software
from .pci import access_control, link
from .place import Place, Report

SHARED = Path("/dev/shm")  # noqa: S108
IOMMU_GROUPS = Path("/sys/kernel/iommu_groups")
QUERY_S = 20.0
CLOCKS = (
    "index",
    "pstate",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "clocks_throttle_reasons.active",
)
VARIABLES = ("CUDA_VISIBLE_DEVICES", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "CUDA_LAUNCH_BLOCKING")


def gpus(at: Place, report: Report) -> None:
    """A step of its own: only a child may ask CUDA. One row with everything."""
    if at.rehearsal:
        report.row(gpus=[{"name": "simulated"}] * len(at.gpus), reaches=[], names=[])
        return
    count = torch.cuda.device_count()
    found = []
    for index in range(count):
        one = torch.cuda.get_device_properties(index)
        place = [getattr(one, f"pci_{name}_id", None) for name in ("domain", "bus", "device")]
        bus = "unknown" if None in place else "{:04x}:{:02x}:{:02x}.0".format(*place)
        found.append(
            {
                "name": one.name,
                "uuid": str(one.uuid),
                "capability": f"sm_{one.major}{one.minor}",
                "memory_bytes": one.total_memory,
                "multiprocessors": one.multi_processor_count,
                "pci": bus,
                "link": link(bus),
                "access_control": access_control(bus),
            }
        )
    reaches = [
        [a == b or torch.cuda.can_device_access_peer(a, b) for b in range(count)]
        for a in range(count)
    ]
    report.row(gpus=found, reaches=reaches, names=gpu_names())


def machine() -> dict[str, Any]:
    """What can be asked without CUDA."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    groups = len(list(IOMMU_GROUPS.iterdir())) if IOMMU_GROUPS.is_dir() else 0
    shared = shutil.disk_usage(SHARED) if SHARED.is_dir() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "software": {**software(), "cuda_toolkit": torch.version.cuda or "none"},
        "driver": driver_version() or "none",
        "memlock_bytes": "unlimited" if soft == resource.RLIM_INFINITY else soft,
        "memlock_hard_bytes": "unlimited" if hard == resource.RLIM_INFINITY else hard,
        "dev_shm": None if shared is None else {"total_bytes": shared.total,
                                                "free_bytes": shared.free},
        "iommu": {"groups": groups, "kernel_options": _iommu_options()},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }  # fmt: skip


def clocks() -> list[dict[str, str]] | str:
    """One entry a GPU from nvidia-smi: clocks, temperature, power, and what holds clocks down."""
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S, check=True)
    except FileNotFoundError:
        return "nvidia-smi is not here"
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"
    rows = [line.split(", ") for line in run.stdout.strip().splitlines()]
    return [dict(zip(CLOCKS, _stripped(row), strict=False)) for row in rows]


def _stripped(row: Sequence[str]) -> list[str]:
    return [cell.strip() for cell in row]


def _iommu_options() -> list[str]:
    try:
        words = Path("/proc/cmdline").read_text().split()
    except OSError:
        return []
    return [word for word in words if "iommu" in word]
