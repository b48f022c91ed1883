"""Dense weights: one tensor [N, K] in bfloat16, float16 or float32."""

from __future__ import annotations

import torch

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.features import Features
from ..checkpoint.safetensors_file import SliceReader
from .expected import FLOATS, Expected


def expected_tensors(module: str, n: int, k: int) -> dict[str, Expected]:
    return {f"{module}.weight": Expected(shape=(n, k), dtypes=FLOATS)}


def read_slice(
    checkpoint: Checkpoint, reader: SliceReader, module: str, rows: Features, columns: Features
) -> torch.Tensor:
    """Read output features `rows` and input features `columns` of a weight, in the file's dtype."""
    return reader.read(checkpoint.entries[f"{module}.weight"], rows, columns)
