"""A small dense model folder with random weights, written without the code under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def dense_tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random tensors of a tied model in bfloat16; biases where Qwen2 or `attention_bias` has them.

    Norms lie around 1, everything else around 0.
    """
    generator = torch.Generator().manual_seed(7)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim", hidden // heads)
    qwen2, all_biases = "Qwen2" in config["architectures"][0], config.get("attention_bias", False)

    def random(*shape: int, around: float = 0.0) -> torch.Tensor:
        return (around + 0.08 * torch.randn(shape, generator=generator)).to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": random(config["vocab_size"], hidden),
        "model.norm.weight": random(hidden, around=1.0),
    }
    for layer in range(config["num_hidden_layers"]):
        products = {
            "self_attn.q_proj": (heads * size, hidden, qwen2 or all_biases),
            "self_attn.k_proj": (kv_heads * size, hidden, qwen2 or all_biases),
            "self_attn.v_proj": (kv_heads * size, hidden, qwen2 or all_biases),
            "self_attn.o_proj": (hidden, heads * size, all_biases),
            "mlp.gate_proj": (wide, hidden, False),
            "mlp.up_proj": (wide, hidden, False),
            "mlp.down_proj": (hidden, wide, False),
        }
        prefix = f"model.layers.{layer}."
        for name, (n, k, bias) in products.items():
            tensors[f"{prefix}{name}.weight"] = random(n, k)
            if bias:
                tensors[f"{prefix}{name}.bias"] = random(n)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = random(hidden, around=1.0)
    return tensors


def save_random_folder(
    folder: Path, config: dict[str, Any], **changed: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Write the folder and return its tensors; `changed` replaces some, None leaves one out."""
    folder.mkdir(exist_ok=True)
    tensors = {**dense_tensors(config), **changed}
    written = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return written
