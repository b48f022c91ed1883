"""Contents of config.json for tests."""

from typing import Any

from isobit.shard.model.spec import ModelSpec, spec_from_config

LAYERS = 6
WINDOW = {"use_sliding_window": True, "sliding_window": 24}


def config(**changes: Any) -> dict[str, Any]:
    """A small Qwen2 with 6 query heads, 2 KV heads and 13 groups of 32."""
    base = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 96,
        "intermediate_size": 416,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 200,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    return {**base, **changes}


def pack_quantized(bits: int = 4, group_size: int = 32, **weights: Any) -> dict[str, Any]:
    """A quantization_config in compressed-tensors' pack-quantized form."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": group_size,
                    **weights,
                },
            }
        },
        "ignore": ["lm_head"],
    }


QWEN_14B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "torch_dtype": "float16",
    "hidden_act": "silu",
    "quantization_config": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
    },
}


def spec_of(**changes: Any) -> ModelSpec:
    """The spec of a small model of LAYERS layers."""
    return spec_from_config(config(num_hidden_layers=LAYERS, **changes), None)
