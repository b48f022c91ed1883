"""Looks at the machine with the standard library alone: each guarded, the risky ones elsewhere.

Importing torch can fail, crash the process or never return, so a process of its own tries it.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..host_memory import available_memory

PACKAGES = ("isobit", "torch", "ray", "transformers", "safetensors", "triton", "nvidia-nccl-cu12")
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "OMP_NUM_THREADS",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "ISOBIT_FAULT",
)
IMPORT_S = 90.0
TOOL_S = 10.0
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_IMPORTS = """
import json, torch
cuda = torch.version.cuda
found = {"version": torch.__version__, "cuda": cuda, "devices": [], "nccl": None}
if cuda and torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        others = [o for o in range(torch.cuda.device_count()) if o != index]
        peers = [o for o in others if torch.cuda.can_device_access_peer(index, o)]
        properties = torch.cuda.get_device_properties(index)
        found["devices"].append({"name": properties.name, "memory": properties.total_memory,
                                 "peers": peers})
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
print(json.dumps(found), flush=True)
from isobit.kernels import ops
print(json.dumps(ops.backend()))
"""


@functools.cache
def import_probe() -> dict[str, Any]:
    """What torch and the compiled kernels say of themselves, as "torch" and "kernels".

    What cannot be imported is {"error": why}, and what comes after it is left out.
    """
    started = time.perf_counter()
    lines, error = _python(_IMPORTS)
    found: dict[str, Any] = dict(zip(("torch", "kernels"), lines, strict=False))
    if error:
        found["kernels" if "torch" in found else "torch"] = {"error": error}
    return found | {"seconds": round(time.perf_counter() - started, 3)}


def machine() -> dict[str, Any]:
    """Everything else, each entry None where it cannot be known."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_bytes": available_memory(),
        "shared_memory_bytes": _free(SHARED_MEMORY),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": _gpus(),
        "topology": _tool("nvidia-smi", "topo", "-m"),
        "peer_to_peer": _tool("nvidia-smi", "topo", "-p2p", "r"),
        "iommu_groups": _count(Path("/sys/kernel/iommu_groups")),
        "acs": _acs(),
        "kernel_command_line": _iommu_arguments(),
        "ray": {
            "auth_mode": os.environ.get("RAY_AUTH_MODE"),
            "auth_token": (Path.home() / ".ray" / "auth_token").is_file(),
        },
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _python(program: str) -> tuple[list[Any], str]:
    """Run a program in this interpreter's twin; return what it printed as JSON, and its error."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=IMPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {IMPORT_S:.0f} s"
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not done.returncode:
        return lines, "" if len(lines) == 2 else "it prints something else"
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return lines, f"{last[0]} (ended with {how})"


def _tool(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _gpus() -> list[dict[str, str]]:
    keys = ("name", "memory.total", "driver_version", "pcie.link.gen.current")
    text = _tool("nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader")
    rows = [line.split(", ") for line in (text or "").splitlines()]
    return [dict(zip(keys, row, strict=False)) for row in rows]


def _acs() -> bool | None:
    """Whether a PCI bridge redirects peer traffic upstream; only root can see it."""
    text = _tool("lspci", "-vvv")
    if text is None or "ACSCtl" not in text:
        return None
    lines = [line for line in text.splitlines() if "ACSCtl" in line]
    return any("ReqRedir+" in line for line in lines)


def _iommu_arguments() -> str | None:
    try:
        words = Path("/proc/cmdline").read_text().split()
    except OSError:
        return None
    return " ".join(word for word in words if "iommu" in word)


def _count(folder: Path) -> int | None:
    try:
        return len(list(folder.iterdir()))
    except OSError:
        return None


def _free(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
