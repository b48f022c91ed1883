"""What the tests of inspection share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from isobit.shard.inspect import Finding, Report

# Eight 4-bit codes of 8, the zero point of symmetric weights.
ZERO_WORD = torch.tensor(0x88888888 - (1 << 32), dtype=torch.int32)
LAYER = "model.layers.{}."


def codes_of(report: Report, severity: str | None = None) -> set[str]:
    return {f.code for f in report.findings if severity in (None, f.severity)}


def finding(report: Report, code: str) -> Finding:
    """The only finding of a code."""
    found = [f for f in report.findings if f.code == code]
    assert len(found) == 1, [f.code for f in report.findings]
    return found[0]


def set_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
