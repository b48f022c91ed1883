"""What one host says of itself: plain values, measured where this runs."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from ...runtime.doctor.known_bad import known_bad
from ...runtime.doctor.probes import import_probe, machine

SMALL_FILES = ("config.json", "model.safetensors.index.json")


def node_facts(model: str | None) -> dict[str, Any]:
    """Versions, GPUs, memory, disk, and what lies at the path `model`; entries as in `machine`.

    "torch" and "kernels" are those of `import_probe`; "trouble" what is known to go wrong on such
    a machine.
    """
    seen = machine()
    seen |= import_probe()
    return {
        "hostname": socket.gethostname(),
        **{key: seen[key] for key in ("python", "packages", "gpus", "memory_bytes")},
        "shared_memory_bytes": seen["shared_memory_bytes"],
        "torch": seen["torch"],
        "kernels": seen.get("kernels"),
        "disk_bytes": free_disk(Path.home() if model is None else Path(model)),
        "model": None if model is None else model_facts(Path(model)),
        "trouble": [{key: entry[key] for key in ("what", "way_out")} for entry in known_bad(seen)],
    }


def model_facts(folder: Path) -> dict[str, Any]:
    """Bytes of the weights, and the SHA-256 of the small files that say what they are.

    A file that is not there has the hash None; "error" is set where the folder cannot be read.
    """
    found: dict[str, Any] = {"path": str(folder), "bytes": 0, "sha256": {}}
    try:
        if not folder.is_dir():
            return found | {"error": "no such folder"}
        found["bytes"] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for name in SMALL_FILES:
            file = folder / name
            known = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
            found["sha256"][name] = known
    except OSError as error:
        return found | {"error": error.strerror or str(error)}
    return found


def free_disk(path: Path) -> int | None:
    """Bytes that may still be written where `path` is, or would be."""
    for place in (path, *path.parents):
        try:
            status = os.statvfs(place)
        except OSError:
            continue
        return status.f_bavail * status.f_frsize
    return None
