"""bitsandbytes, through transformers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from .expected import Expected
from .models import Shape, dense


def bitsandbytes(folder: Path, shape: Shape, **settings: Any) -> Expected:
    """Quantized and written by bitsandbytes through transformers."""
    from transformers import BitsAndBytesConfig

    with TemporaryDirectory() as source:
        dense(shape).save_pretrained(source)
        AutoModelForCausalLM.from_pretrained(
            source,
            quantization_config=BitsAndBytesConfig(**settings),
            dtype=shape.torch_dtype,
            device_map={"": "cpu"},
        ).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    return Expected(bitsandbytes_weights(folder))


def bitsandbytes_weights(folder: Path) -> dict[str, Tensor]:
    """The weights as its plain kernels read them; the CPU kernel errs where blocks cross rows."""
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.functional import QuantState, dequantize_blockwise, int8_vectorwise_dequant

    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name in [key.removesuffix(".weight") for key in tensors if key.endswith("_proj.weight")]:
        weight = tensors[f"{name}.weight"]
        if weight.dtype == torch.int8:
            weights[name] = int8_vectorwise_dequant(weight, tensors[f"{name}.SCB"])
            continue
        prefix = f"{name}.weight."
        parts = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        absmax = state.absmax
        if state.nested:
            absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
        weights[name] = _dequantize_4bit_compute(
            weight.flatten(), absmax, state.code, state.blocksize, state.shape, torch.float32
        )
    return weights
