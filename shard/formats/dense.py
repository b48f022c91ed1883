"""Dense weights: one tensor [N, K] in bfloat16, float16 or float32."""

from __future__ import annotations

import torch

from ..checkpoint import Checkpoint
from ..safetensors_file import SliceReader

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def expected_tensors(module: str, n: int, k: int) -> dict[str, tuple[int, ...]]:
    return {f"{module}.weight": (n, k)}


def read_slice(
    checkpoint: Checkpoint, reader: SliceReader, module: str, rows: slice, columns: slice
) -> torch.Tensor:
    """Read output features `rows` and input features `columns` of a weight, in the file's dtype."""
    return reader.read(checkpoint.entries[f"{module}.weight"], rows, columns)
