"""Small dense models with seeded weights: what every case quantizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY, TOKENS = 130, 40
CALIBRATION = {"samples": 16, "length": 64}


@dataclass(frozen=True)
class Shape:
    architecture: str = "llama"  # untied, no bias; "qwen2" is tied and has biases on q, k and v
    dtype: str = "float16"
    layers: int = 2
    hidden: int = 48
    head_size: int = 8
    intermediate: int = 112
    heads: int = 6
    kv_heads: int = 2

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_ids(seed: int, count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=generator(seed))


def dense(shape: Shape) -> PreTrainedModel:
    """A model with seeded weights, large enough that logits spread over a few units."""
    config = AutoConfig.for_model(
        shape.architecture,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=shape.architecture == "qwen2",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        dtype=shape.dtype,
        **({"head_dim": shape.head_size} if shape.architecture == "llama" else {}),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    source = generator(2026)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=source)
            if name.endswith("norm.weight"):
                noise = 1 + 0.2 * noise
            elif name.endswith("embed_tokens.weight"):
                noise *= 0.3 if config.tie_word_embeddings else 1.0
            elif name.endswith("lm_head.weight"):
                noise *= 0.3
            elif name.endswith(".bias"):
                noise *= 0.5
            else:
                noise /= math.sqrt(parameter.shape[1])
            parameter.copy_(noise)
    model.config.dtype = shape.torch_dtype
    return model.to(shape.torch_dtype).eval()


def projections(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            yield name, module


def skew(model: PreTrainedModel) -> PreTrainedModel:
    """Give some groups only positive and some only negative weights: zero points 0 and 15."""
    with torch.no_grad():
        for _, linear in projections(model):
            linear.weight[::5, :32].abs_()
            linear.weight[2::7, :32].abs_().neg_()
    return model


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tensors: dict[str, Tensor],
    settings: dict[str, Any] | None,
) -> None:
    """Write a model some of whose modules are replaced by `tensors`, named `<module>.<tensor>`."""
    replaced = {name.rpartition(".")[0] for name in tensors}
    kept = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[0] not in replaced
        and not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    everything = {name: tensor.detach().contiguous() for name, tensor in (kept | tensors).items()}
    save_file(everything, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    if settings is not None:
        model.config.quantization_config = settings
    model.config.save_pretrained(folder)
