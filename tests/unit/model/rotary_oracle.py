"""Rotary tables of transformers: its own code, in float32 as it comes, or in float64."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, modeling_rope_utils
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

FAMILIES = {
    "llama": (LlamaConfig, LlamaRotaryEmbedding),
    "mistral": (MistralConfig, MistralRotaryEmbedding),
    "qwen2": (Qwen2Config, Qwen2RotaryEmbedding),
    "qwen3": (Qwen3Config, Qwen3RotaryEmbedding),
}
KINDS = ("default", "linear", "llama3", "yarn", "longrope-short", "longrope-long", "dynamic")
_DOUBLE = {"float": torch.float64, "float32": torch.float64}


@contextlib.contextmanager
def in_float64():
    """Let transformers' rotary code compute in float64: its own formulas, and no other rounding."""
    real = {"torch": modeling_rope_utils.torch, "float": torch.Tensor.float}
    default = torch.get_default_dtype()
    wide = SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch)} | _DOUBLE)
    torch.Tensor.float = torch.Tensor.double
    modeling_rope_utils.torch = wide
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float, modeling_rope_utils.torch = real["float"], real["torch"]
        torch.set_default_dtype(default)


def frequencies(family: str, config: dict[str, Any], length: int) -> tuple[torch.Tensor, float]:
    """Frequencies [D/2] and the attention factor for a pass over `length` tokens."""
    make, embedding = FAMILIES[family]
    made = make(**config)
    kind = made.rope_parameters["rope_type"]
    if kind == "default":
        # The one formula that is not in modeling_rope_utils; its dtype is a literal.
        base, size = made.rope_parameters["rope_theta"], config["head_dim"]
        if torch.get_default_dtype() == torch.float32:
            return embedding.compute_default_rope_parameters(made)
        return 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float64) / size)), 1.0
    return modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](made, seq_len=length)


def module_tables(
    family: str, config: dict[str, Any], length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [length, D/2], of the family's rotary module in one pass."""
    make, embedding = FAMILIES[family]
    half = config["head_dim"] // 2
    cos, sin = embedding(make(**config))(torch.ones(1), torch.arange(length)[None])
    return cos[0, :, :half], sin[0, :, :half]


def random_settings(kind: str, seed: int) -> tuple[dict[str, Any], int]:
    """A config.json with random rotary settings of a kind, and a length of a pass on its side."""
    drawn = random.Random(f"{kind} {seed}")
    head, original = drawn.choice([16, 32, 48, 64, 96, 128]), drawn.choice([64, 100, 256, 1000])
    factor = drawn.choice([1.0, 2, 4.0, 8, drawn.uniform(1, 40)])
    rope: dict[str, Any] = {"rope_type": kind.partition("-")[0]}
    positions, length = original * 4, original
    if kind in ("linear", "llama3", "yarn", "dynamic"):
        rope["factor"] = factor
    if kind == "llama3":
        low = drawn.uniform(0.5, 2)
        rope |= {"low_freq_factor": low, "high_freq_factor": low + drawn.uniform(0.5, 6)}
    if kind == "yarn":
        extra = {
            "attention_factor": drawn.uniform(0.5, 2),
            "beta_fast": drawn.choice([32, 16.0, 0, 64]),
            "beta_slow": drawn.choice([1, 2.0, 0.5]),
            "mscale": drawn.choice([0, 1.0, 0.707]),
            "mscale_all_dim": drawn.choice([0, 1.0, 0.8]),
            "truncate": drawn.random() < 0.5,
        }
        rope |= {key: value for key, value in extra.items() if drawn.random() < 0.5}
    if rope["rope_type"] == "longrope":
        for name in ("short_factor", "long_factor"):
            rope[name] = [drawn.uniform(1, 30) for _ in range(head // 2)]
        if drawn.random() < 0.5:
            rope["factor"] = factor
        if drawn.random() < 0.5:
            rope["attention_factor"] = drawn.uniform(0.5, 2)
        length = original if kind.endswith("short") else drawn.randint(original + 1, positions)
    if kind == "dynamic":
        positions = original
    settings = {
        "hidden_size": 4 * head,
        "num_attention_heads": 4,
        "head_dim": head,
        "max_position_embeddings": positions,
    }
    theta = drawn.choice([10000.0, 500000.0, 1e6, drawn.uniform(100, 1e7)])
    if rope["rope_type"] in ("llama3", "yarn", "longrope"):
        at = drawn.choice(["inside", "above", "both"])
        if at != "above":
            rope["original_max_position_embeddings"] = original
        if at != "inside":
            settings["original_max_position_embeddings"] = original
    if drawn.random() < 0.5:
        return {**settings, "rope_parameters": {**rope, "rope_theta": theta}}, length
    if drawn.random() < 0.5:
        rope["type"] = rope.pop("rope_type")
    return {**settings, "rope_theta": theta, "rope_scaling": rope}, length
