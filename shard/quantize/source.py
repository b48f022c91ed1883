"""The dense model that is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isobit.errors import DamagedError, InputError

from ...kernels.weights.finite import all_finite
from ..checkpoint.checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.safetensors_file import SliceReader
from ..checkpoint.settings import read_config
from ..contents.stored_head import with_stored_head
from ..load.validate import check_checkpoint
from ..model.spec import ModelSpec, read_spec


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """A model folder whose headers fit its config."""

    folder: Path
    spec: ModelSpec
    config: dict[str, Any]
    checkpoint: Checkpoint

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.checkpoint.entries.values())


def open_dense(model: Path) -> DenseModel:
    """Read config and headers. Raises InputError E-QUANT-TWICE, and what reading a folder raises"""
    spec, config = read_spec(model), read_config(model)
    if spec.quantization is not None:
        raise InputError(
            "E-QUANT-TWICE",
            f"{model}: already quantized ({spec.quantization.method}). Start from the dense model",
        )
    checkpoint = open_checkpoint(model)
    stored = with_stored_head(spec, checkpoint)
    if stored.tied_embeddings != spec.tied_embeddings:
        config = {**config, "tie_word_embeddings": False}
    spec = stored
    check_checkpoint(checkpoint, spec)
    return DenseModel(folder=model, spec=spec, config=config, checkpoint=checkpoint)


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Raise InputError E-CKPT-NAN for a tensor that holds NaN or infinity."""
    if tensor.is_floating_point() and not all_finite(tensor):
        raise DamagedError(
            "E-CKPT-NAN", f"{name}: NaN or infinity in the source. Nothing was written"
        )


def layer_tensors(
    source: DenseModel, reader: SliceReader, layer: int, but: tuple[str, ...] = ()
) -> dict[str, torch.Tensor]:
    """All tensors of a layer by full name, but for those whose names begin with one of `but`."""
    prefix = f"model.layers.{layer}."
    return {
        name: reader.read(entry)
        for name, entry in source.checkpoint.entries.items()
        if name.startswith(prefix) and not name.startswith(but)
    }
