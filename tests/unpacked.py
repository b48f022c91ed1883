"""Quantized folders unpacked in numpy by the definitions of their formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The nibble of a word, low first, that holds each of its eight columns."""


def unpacked_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights float32 [N, K] of every quantized module, by module name; each is one product."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    endings = (".qweight", ".weight_packed", ".weight_scale")
    names = {name.removesuffix(end) for name in tensors for end in endings if name.endswith(end)}
    weights = {}
    for name in sorted(names):
        parts = _parts(tensors, name)
        if config["quant_method"] == "gptq":
            weights[name] = _gptq(parts, {"gptq": 1, "gptq_v2": 0}[config["checkpoint_format"]])
        elif config["quant_method"] == "awq":
            weights[name] = _awq(parts, config["group_size"])
        else:
            weights[name] = _compressed_tensors(parts)
    return weights


def _parts(tensors: dict[str, torch.Tensor], module: str) -> dict[str, torch.Tensor]:
    prefix = f"{module}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _gptq(parts: dict[str, torch.Tensor], lacking: int) -> torch.Tensor:
    groups = parts["g_idx"].long()
    bits = parts["qweight"].shape[0] * 32 // len(groups)
    codes = _elements(parts["qweight"].T, bits)
    zeros = _elements(parts["qzeros"], bits).T + lacking
    return (codes - zeros[:, groups]).float() * parts["scales"].T.float()[:, groups]


def _awq(parts: dict[str, torch.Tensor], group_size: int) -> torch.Tensor:
    codes, zeros = (
        _elements(parts[name], 4).unflatten(1, (-1, 8))[:, :, AWQ_PLACES].flatten(1).T
        for name in ("qweight", "qzeros")
    )
    groups = torch.arange(codes.shape[1]) // group_size
    return (codes - zeros[:, groups]).float() * parts["scales"].T.float()[:, groups]


def _compressed_tensors(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    scales = parts["weight_scale"].float()
    if "weight" in parts:
        return parts["weight"].float() * scales
    n, k = parts["weight_shape"].tolist()
    bits = parts["weight_packed"].shape[1] * 32 // k
    codes = _elements(parts["weight_packed"], bits)
    groups = torch.arange(k) // (k // scales.shape[1])
    zeros = torch.full((n, scales.shape[1]), 1 << (bits - 1))
    if "weight_zero_point" in parts:
        zeros = _elements(parts["weight_zero_point"].T, bits).T
    return (codes - zeros[:, groups]).float() * scales[:, groups]


def _elements(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, words] -> int64 [rows, elements], the element of the lowest bits first."""
    wide = words.contiguous().numpy().view(np.uint32)[:, :, None]
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    elements = (wide >> shifts) & np.uint32((1 << bits) - 1)
    return torch.from_numpy(elements.reshape(words.shape[0], -1).astype(np.int64))
