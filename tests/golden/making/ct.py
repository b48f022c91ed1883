"""compressed-tensors: packed and read by the package, on scales found here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from .expected import Expected
from .models import CALIBRATION, TOKENS, Shape, dense, generator, projections, skew, token_ids


def weight_args(**settings: Any) -> dict[str, Any]:
    strategy = "group" if "group_size" in settings else "channel"
    return {"type": "int", "symmetric": True, "dynamic": False, "strategy": strategy} | settings


def input_args(**settings: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True} | settings


def compressed_tensors(
    folder: Path, shape: Shape, groups: dict[str, dict[str, Any]], ignore: list[str] | None = None
) -> Expected:
    """Scales from the extremes of each group, as its users' observers do; packed and read by it."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model = dense(shape)
    if not all(group["weights"]["symmetric"] for group in groups.values()):
        skew(model)
    inputs = observe(model)
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head", *(ignore or [])])
    apply_quantization_config(model, config)
    for name, linear in projections(model):
        if hasattr(linear, "quantization_scheme"):
            calibrate(linear, inputs[name])
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    (folder / "generation_config.json").unlink()
    schemes = {
        name: linear.quantization_scheme
        for name, linear in projections(model)
        if hasattr(linear, "quantization_scheme")
    }
    weights = compressed_tensors_weights(folder, schemes)
    activations = any(scheme.input_activations for scheme in schemes.values())
    return Expected(weights, compressed_tensors_logits(folder) if activations else None)


def observe(model: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """The smallest and the largest input of every projection over one prompt."""
    extremes: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str, _module: Any, args: tuple[Tensor]) -> None:
        extremes[name] = (args[0].amin(), args[0].amax())

    hooks = [
        linear.register_forward_pre_hook(partial(watch, name))
        for name, linear in projections(model)
    ]
    with torch.no_grad():
        model(token_ids(100, CALIBRATION["length"])[None])
    for hook in hooks:
        hook.remove()
    return extremes


@torch.no_grad()
def calibrate(linear: torch.nn.Linear, inputs: tuple[Tensor, Tensor]) -> None:
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = linear.quantization_scheme
    weight, args = linear.weight.detach(), scheme.weights
    if hasattr(linear, "weight_g_idx"):
        k = weight.shape[1]
        order = torch.randperm(k, generator=generator(500 + k))
        linear.weight_g_idx[order] = torch.arange(k, dtype=torch.int32) // args.group_size
        weight = weight[:, order]
    rows = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
    scale, zero = calculate_qparams(rows.amin(2), rows.amax(2), args)
    linear.weight_scale.copy_(scale)
    linear.weight_zero_point.copy_(zero)
    if hasattr(linear, "input_scale"):
        scale, zero = calculate_qparams(*inputs, scheme.input_activations)
        linear.input_scale.copy_(scale)
        linear.input_zero_point.copy_(zero)


def compressed_tensors_weights(folder: Path, schemes: dict[str, Any]) -> dict[str, Tensor]:
    """The weights as its compressors read them, with the scales in fp32 so that no product rounds.

    transformers cannot load an asymmetric file (../README.md): this asks the compressor itself.
    """
    from compressed_tensors.compressors import BaseCompressor

    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for name, scheme in schemes.items():
        prefix = f"{name}."
        parts = {
            key.removeprefix(prefix): tensor.float() if key.endswith("_scale") else tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        weights[name] = compressor.decompress(parts, scheme)["weight"]
    return weights


def compressed_tensors_logits(folder: Path) -> Tensor:
    """Logits in fp32 through transformers, where activations are quantized before each product."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(token_ids(7, TOKENS)[None]).logits[0]
