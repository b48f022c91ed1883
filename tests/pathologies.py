"""The example model with what makes large models hard: `python -m tests.pathologies KIND OUT`.

outliers   Some features of every layer are large and their weights small, as behind the norms of
           large models: rounding to INT4 loses those weights, and rounding activations to INT8
           loses all other features.
overflow   The inner activation of one MLP passes 65504, the end of float16. gate_proj and up_proj
           do not: only their product does.
skewed     One weight in every group of 32 is large, and its feature small: all others share a
           scale that is too coarse for them.

Every change multiplies what makes a feature by a power of two and divides all that reads it. So in
float32 and in bfloat16 the model computes what it did, to the bit.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SOURCE = Path(__file__).parent.parent / "examples" / "stdlib-qwen2"
GROUP = 32
OVERFLOWING_LAYER = 3

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]

FEATURES = {
    "attention": ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "mlp": ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    "mlp_inner": ("mlp.up_proj", ("mlp.down_proj",)),
    "values": ("self_attn.v_proj", ("self_attn.o_proj",)),
}
"""Features of a layer: what makes them, and all that reads them."""


def make(kind: str, out: Path, source: Path = SOURCE) -> Path:
    """Write a copy of a dense Qwen2 or Llama folder with one of KINDS; returns `out`."""
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    KINDS[kind](tensors, config)
    out.mkdir(parents=True)
    for path in source.glob("*.json"):
        shutil.copy(path, out / path.name)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def outliers(tensors: Tensors, config: Config) -> None:
    """Behind each norm 2 features 64 times as large and 14 features 16 times; 8 inside the MLP."""
    for layer in range(config["num_hidden_layers"]):
        for features in ("attention", "mlp"):
            strong = strongest(tensors, config, layer, features)
            rescale(tensors, config, layer, features, strong[:2], 64)
            rescale(tensors, config, layer, features, strong[2:16], 16)
        strong = strongest(tensors, config, layer, "mlp_inner")
        rescale(tensors, config, layer, "mlp_inner", strong[:8], 16)


def overflow(tensors: Tensors, config: Config) -> None:
    """Inside one MLP all features 4096 times as large: about 3e5 where 77 was the largest."""
    everything = torch.arange(config["intermediate_size"])
    rescale(tensors, config, OVERFLOWING_LAYER, "mlp_inner", everything, 4096)


def skewed(tensors: Tensors, config: Config) -> None:
    """In every group the feature with the largest weights 16 times smaller, its weights larger."""
    for layer in range(config["num_hidden_layers"]):
        for features in ("attention", "mlp", "mlp_inner"):
            strong = strongest(tensors, config, layer, features)
            groups: dict[int, int] = {}
            for channel in strong.tolist():
                groups.setdefault(channel // GROUP, channel)
            rescale(tensors, config, layer, features, torch.tensor(list(groups.values())), 1 / 16)


KINDS: dict[str, Callable[[Tensors, Config], None]] = {
    "outliers": outliers,
    "overflow": overflow,
    "skewed": skewed,
}


def rescale(
    tensors: Tensors,
    config: Config,
    layer: int,
    features: str,
    channels: torch.Tensor,
    factor: float,
) -> None:
    """Multiply features of a layer by a power of two, in place; what reads them is divided.

    `channels` int64 [C] index the output of what makes the features. A channel of v_proj is read by
    every query head of its KV head.
    """
    maker, readers = FEATURES[features]
    prefix = f"model.layers.{layer}."
    for part in ("weight", "bias"):
        if (made := tensors.get(f"{prefix}{maker}.{part}")) is not None:
            made[channels] *= factor
    columns = channels if features != "values" else _query_channels(config, channels)
    for reader in readers:
        tensors[f"{prefix}{reader}.weight"][:, columns] /= factor


def strongest(tensors: Tensors, config: Config, layer: int, features: str) -> torch.Tensor:
    """Channels by how much they matter by weights alone, int64, the most important first."""
    maker, readers = FEATURES[features]
    prefix = f"model.layers.{layer}."
    made = tensors[f"{prefix}{maker}.weight"].float()
    size = made.abs() if made.dim() == 1 else made.norm(dim=1)
    read = torch.cat([tensors[f"{prefix}{reader}.weight"].float() for reader in readers])
    weight = read.norm(dim=0)
    if features == "values":
        weight = weight[_query_channels(config, torch.arange(len(size)))].view(-1, len(size))
        weight = weight.norm(dim=0)
    return (size * weight).argsort(descending=True, stable=True)


def _query_channels(config: Config, channels: torch.Tensor) -> torch.Tensor:
    """The channels of o_proj that read channels [C] of v_proj, [readers * C], reader by reader."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    head, place = channels // width, channels % width
    readers = heads // kv_heads
    return torch.cat([(head * readers + each) * width + place for each in range(readers)])


def main(arguments: list[str]) -> None:
    if len(arguments) != 2 or arguments[0] not in KINDS:
        sys.exit(f"usage: python -m tests.pathologies {{{','.join(KINDS)}}} OUT")
    kind, out = arguments
    print(make(kind, Path(out)))


if __name__ == "__main__":
    main(sys.argv[1:])
