"""GPTQ: by GPTQModel where it can write the case, packed here where it cannot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from .expected import Expected
from .models import Shape, dense, generator, projections, skew, write_model
from .packing import pack_nibbles
from .with_gptqmodel import gptqmodel_quantize, gptqmodel_settings, gptqmodel_weights


def gptq(folder: Path, shape: Shape, **settings: Any) -> Expected:
    """Quantized, packed and read back by GPTQModel."""
    model = dense(shape)
    gptqmodel_quantize(folder, model if settings["sym"] else skew(model), **settings)
    return Expected(gptqmodel_weights(folder))


def gptq_apart(folder: Path, shape: Shape, group_size: int) -> Expected:
    """Act-order with a g_idx of its own for each module: rounded here, packed by GPTQModel.

    GPTQModel derives g_idx from the inputs, so that q, k and v always get the same one.
    """
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    settings = gptqmodel_settings(bits=4, group_size=group_size, sym=True, desc_act=True)
    model, tensors = dense(shape), {}
    for number, (name, linear) in enumerate(projections(model)):
        n, k = linear.weight.shape
        order = torch.randperm(k, generator=generator(300 + number))
        g_idx = torch.empty(k, dtype=torch.int32)
        g_idx[order] = torch.arange(k, dtype=torch.int32) // group_size
        grouped = linear.weight.float()[:, order].reshape(n, -1, group_size)
        scales = (grouped.abs().amax(2) / 7.5).half().float()
        packed = TorchLinear(
            bits=4,
            group_size=group_size,
            sym=True,
            desc_act=True,
            in_features=k,
            out_features=n,
            bias=linear.bias is not None,
        )
        packed.pack_original(linear.float(), scales, torch.full_like(scales, 8), g_idx)
        convert_gptq_v2_to_v1_format_module(packed, settings)
        tensors |= {f"{name}.{key}": tensor for key, tensor in packed.state_dict().items()}
        linear.to(shape.torch_dtype)
    write_model(folder, model, tensors, settings.to_dict())
    return Expected(gptqmodel_weights(folder))


def gptq_nibbles(folder: Path, shape: Shape, group_size: int) -> Expected:
    """v1 with zero points of 0, each stored as a nibble 15 that touches no other: packed here.

    No writer does this (../README.md), every reader that works nibble by nibble does. In the style
    of AutoGPTQ: quantize_config.json, and no g_idx.
    """
    model, tensors, weights = dense(shape), {}, {}
    source = generator(400)
    for name, linear in projections(model):
        n, k = linear.weight.shape
        groups = k // group_size
        zeros = torch.randint(16, (groups, n), generator=source)
        spread = zeros.repeat_interleave(group_size, 0)
        noise = 3 * torch.randn(k, n, generator=source)
        codes = (spread + noise.round().long()).clamp(0, 15)
        scales = ((0.5 + torch.rand(groups, n, generator=source)) / (3 * math.sqrt(k))).half()
        tensors[f"{name}.qweight"] = pack_nibbles(codes.T).T
        tensors[f"{name}.qzeros"] = pack_nibbles((zeros - 1) & 15)
        tensors[f"{name}.scales"] = scales
        if linear.bias is not None:
            tensors[f"{name}.bias"] = linear.bias.half()
        weights[name] = ((codes - spread) * scales.float().repeat_interleave(group_size, 0)).T
    write_model(folder, model, tensors, None)
    settings = {
        "bits": 4,
        "group_size": group_size,
        "damp_percent": 0.01,
        "desc_act": False,
        "static_groups": False,
        "sym": False,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": None,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
    }
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return Expected(weights)
