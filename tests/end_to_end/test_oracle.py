"""Our logits against transformers, an implementation that shares no code with ours."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from isobit.shard.quantize.folder import QuantizeSettings, quantize_folder

from ..support import DENSE, INT4, all_logits, save_random_model

IDS = [int(i) for i in torch.randint(0, 120, (90,), generator=torch.Generator().manual_seed(1))]

# Both sides compute in float32 and only the order of additions differs: a few hundred additions
# per output and a handful of layers leave some 1e-6 of the largest logit. 2e-5 gives it room.
FLOAT32_BOUND = 2e-5
# Activations rounded to bfloat16 (relative 2^-9) before every product of 5 layers; measured 0.0066
# (INT4) and 0.0079 (dense) of the largest logit on the shipped models.
BFLOAT16_BOUND = 0.03


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def oracle_logits(model, ids=IDS) -> torch.Tensor:
    oracle = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return oracle(torch.tensor([ids])).logits[0]


SHAPE = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 130,
    "max_position_embeddings": 256,
    "dtype": torch.float32,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama-biases": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "llama3-rope": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE)),
    "linear-rope": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        )
    ),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=24)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen2-window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=24, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_in_float32(family, tmp_path):
    torch.manual_seed(0)
    model = save_random_model(tmp_path / "model", FAMILIES[family]())
    ours = all_logits(model, IDS, "float32")
    assert relative_error(ours, oracle_logits(model)) < FLOAT32_BOUND


@pytest.mark.parametrize("layout", ["pad", "ragged"])
@pytest.mark.parametrize("model", [DENSE, INT4], ids=["dense", "int4"])
def test_shipped_models_in_float32(model, layout):
    ours = all_logits(model, IDS, "float32", layout)
    assert relative_error(ours, oracle_logits(model)) < FLOAT32_BOUND


@pytest.mark.parametrize("model", [DENSE, INT4], ids=["dense", "int4"])
def test_shipped_models_in_their_own_dtype(model):
    ours = all_logits(model, IDS, "bfloat16")
    assert relative_error(ours, oracle_logits(model)) < BFLOAT16_BOUND


@pytest.mark.parametrize(
    "settings",
    [
        QuantizeSettings(bits=4, group_size=32),
        QuantizeSettings(bits=8, group_size=32),
        QuantizeSettings(bits=8, group_size=-1),
    ],
    ids=["int4-group", "int8-group", "int8-channel"],
)
def test_what_quantize_writes_loads_in_transformers(settings, tmp_path):
    quantize_folder(DENSE, tmp_path / "out", settings)
    ours = all_logits(tmp_path / "out", IDS, "float32")
    assert relative_error(ours, oracle_logits(tmp_path / "out")) < FLOAT32_BOUND
