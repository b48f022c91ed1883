"""What one host says of itself: plain values, measured where this runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ....runtime.doctor.known_bad import known_bad
from ....runtime.doctor.probes import import_probe, machine
from ....runtime.model_files.manifest import read_manifest


def node_facts(model: str | None) -> dict[str, Any]:
    """GPUs, memory, disk, and the files in the folder `model`; entries as in `machine`.

    "torch" and "kernels" are those of `import_probe`; "trouble" what is known to go wrong on such
    a machine; "model" a manifest, or "error" with the reason why there is none.
    """
    seen = machine()
    seen |= import_probe()
    return {
        "gpus": seen["gpus"],
        "memory_bytes": seen["memory_bytes"],
        "shared_memory_bytes": seen["shared_memory_bytes"],
        "disk_bytes": free_disk(Path.home() if model is None else Path(model)),
        "torch": seen["torch"],
        "kernels": seen.get("kernels"),
        "model": None if model is None else _model(Path(model)),
        "trouble": [{key: entry[key] for key in ("what", "remedy")} for entry in known_bad(seen)],
    }


def free_disk(path: Path) -> int | None:
    """Bytes that may still be written where `path` is, or would be."""
    for place in (path, *path.parents):
        try:
            status = os.statvfs(place)
        except OSError:
            continue
        return status.f_bavail * status.f_frsize
    return None


def _model(folder: Path) -> dict[str, Any]:
    try:
        return read_manifest(folder).to_dict()
    except InputError as error:
        return {"files": [], "error": error.message}
