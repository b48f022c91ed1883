"""What a case expects: the weights as their package reads them, and logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from .models import TOKENS, token_ids


@dataclass(frozen=True)
class Expected:
    weights: dict[str, Tensor]  # module -> fp32 [N, K]
    logits: Tensor | None = None  # None: those of the dense model with these weights


def write_expected(folder: Path, expected: Expected) -> None:
    logits = expected.logits
    if logits is None:
        logits = dense_logits(folder, expected.weights)
    tensors = {f"{module}.weight": weight for module, weight in expected.weights.items()}
    tensors |= {"ids": token_ids(7, TOKENS), "logits": logits}
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        folder / "expected.safetensors",
    )


def dense_logits(folder: Path, weights: dict[str, Tensor]) -> Tensor:
    """Logits in fp32 of the architecture with these weights and the file's other tensors."""
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    state = {
        name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    state |= {f"{module}.weight": weight for module, weight in weights.items()}
    missing = set(model.state_dict()) - set(state)
    if missing - ({"lm_head.weight"} if config.tie_word_embeddings else set()):
        raise ValueError(f"{folder.name}: not in the file: {sorted(missing)}")
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(token_ids(7, TOKENS)[None]).logits[0]
