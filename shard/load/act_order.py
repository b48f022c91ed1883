"""Act-order in the MLP: the order of intermediate features that brings whole groups together.

With act-order (desc_act) a group's input features are scattered over down_proj, so that each rank
would need the scales of every group. Sorting them by group, and the outputs of gate and up alike,
leaves the product as it was and puts whole groups on one rank (arXiv 2402.04925).
"""

from __future__ import annotations

import torch

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.safetensors_file import SliceReader
from ..formats import quantized_format
from ..formats.codes import group_index
from ..model.spec import ModelSpec
from ..plan.modules import layer_modules


def mlp_order(
    checkpoint: Checkpoint, reader: SliceReader, spec: ModelSpec, layer: int
) -> torch.Tensor | None:
    """Return the intermediate features in the order of their groups, int64; None: as they are."""
    down = layer_modules(spec, layer)["down"].name
    scheme = spec.scheme(down)
    if scheme is None:
        return None
    name = quantized_format(scheme.format).GROUP_INDEX
    g_idx = group_index(reader, checkpoint.entries.get(f"{down}.{name}"), scheme)
    return None if g_idx is None else g_idx.argsort(stable=True)
