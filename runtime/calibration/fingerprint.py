"""Everything that decides the bytes that calibration writes; the degree is not part of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...shard.quantize.source import DenseModel
from ..engine.agreement import software
from .job import CalibrateSettings


def run_fingerprint(
    source: DenseModel, samples: torch.Tensor, settings: CalibrateSettings
) -> dict[str, Any]:
    """Plain values by name: files of the model, samples, settings, software. Two runs write the
    same bytes when all are equal."""
    flat = {
        f"{part}.{name}": value
        for part, fields in dataclasses.asdict(settings).items()
        for name, value in fields.items()
    }
    return {
        "model": _model_digest(source),
        "samples": f"{list(samples.shape)} {_digest(samples.numpy().tobytes())}",
        **flat,
        **calibration_software(source.folder, source.spec.torch_dtype),
    }


def calibration_software(model: Path, dtype: torch.dtype) -> Mapping[str, str]:
    """Versions and instruction sets, which every rank must have in common."""
    return {**software(model, dtype), "torch kernels": torch.backends.cpu.get_cpu_capability()}


def _model_digest(source: DenseModel) -> str:
    """Over every header and over the size and time of every file, not over the weights."""
    entries = source.checkpoint.entries.values()
    lines = [f"{e.name} {e.dtype} {e.shape} {e.file.name} {e.begin}" for e in entries]
    for file in sorted({entry.file for entry in entries}):
        status = file.stat()
        lines.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return _digest("\n".join(lines).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
