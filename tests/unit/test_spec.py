"""config.json: four families read as transformers reads them, everything else named and refused."""

from __future__ import annotations

import json

import pytest
import torch
from isobit.shard.modules import layer_modules
from isobit.shard.spec import read_spec, spec_from_config
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from .configs import config, pack_quantized

CONFIGS = {
    "Llama": LlamaConfig,
    "Mistral": MistralConfig,
    "Qwen2": Qwen2Config,
    "Qwen3": Qwen3Config,
}
LAYERS = 6


def spec_of(**changes):
    return spec_from_config(config(num_hidden_layers=LAYERS, **changes), None)


def family(name, **changes):
    return spec_of(architectures=[f"{name}ForCausalLM"], **changes)


@pytest.mark.parametrize(
    ("name", "qkv_bias", "o_bias", "qk_norm"),
    [
        ("Llama", False, False, False),
        ("Mistral", False, False, False),
        ("Qwen2", True, False, False),
        ("Qwen3", False, False, True),
    ],
)
def test_what_tells_the_families_apart(name, qkv_bias, o_bias, qk_norm):
    spec = family(name)
    assert (spec.family, spec.qkv_bias, spec.o_bias, spec.qk_norm, spec.mlp_bias) == (
        name.lower(),
        qkv_bias,
        o_bias,
        qk_norm,
        False,
    )


def test_sizes_are_taken_as_they_stand():
    spec = spec_of()
    assert (spec.hidden_size, spec.intermediate_size, spec.layers) == (96, 416, LAYERS)
    assert (spec.heads, spec.kv_heads, spec.head_size) == (6, 2, 16)
    assert (spec.vocab_size, spec.max_positions, spec.norm_eps) == (200, 512, 1e-6)
    assert spec.tied_embeddings
    assert spec.torch_dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_attention_bias_covers_all_four_products(name):
    spec = family(name, attention_bias=True)
    assert spec.qkv_bias
    assert spec.o_bias


def test_head_dim_needs_no_relation_to_hidden_size():
    assert family("Qwen3", head_dim=128).head_size == 128
    query = layer_modules(spec_of(hidden_size=100, head_dim=16), 0)["q"]
    assert (query.n, query.k) == (96, 100)


def test_without_kv_heads_every_head_has_its_own():
    settings = config()
    del settings["num_key_value_heads"]
    assert spec_from_config(settings, None).kv_heads == 6


@pytest.mark.parametrize("names", [["GPTBigCodeForCausalLM"], [], None, [None], "Qwen2ForCausalLM"])
def test_an_unknown_architecture_lists_the_known_ones(names, error_of):
    error = error_of(spec_of, architectures=names)
    assert error.code == "E-MODEL-ARCH"
    assert "LlamaForCausalLM" in error.message


WINDOW = {"use_sliding_window": True, "sliding_window": 24}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "96"}, "hidden_size"),
        ({"hidden_size": 97}, "head_dim"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"intermediate_size": 416.0}, "intermediate_size"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [1, "</s>"]}, "eos_token_id"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types"),
        ({"layer_types": ["linear_attention"] * LAYERS}, "linear_attention"),
        ({**WINDOW, "sliding_window": "wide"}, "sliding_window"),
        ({**WINDOW, "max_window_layers": "all"}, "max_window_layers"),
    ],
    ids=str,
)
def test_values_that_no_model_has(changes, named, error_of):
    error = error_of(spec_of, **changes)
    assert error.code == "E-CONFIG-VALUE"
    assert named in error.message


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, "yarn"),
        ({"type": "dynamic", "factor": 4.0}, "dynamic"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "llama3", **LLAMA3}, "original_max_position_embeddings"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "default", "rope_theta": float("inf")}, "rope_theta"),
        ("linear", "rope_scaling"),
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rotary_settings_that_are_not_computed(key, scaling, named, error_of):
    error = error_of(spec_of, **{key: scaling})
    assert error.code == "E-CONFIG-ROPE"
    assert named in error.message


@pytest.mark.parametrize("theta", ["large", -1, 0, True])
def test_rope_theta_is_a_positive_number(theta, code_of):
    assert code_of(spec_of, rope_theta=theta) == "E-CONFIG-ROPE"


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"hidden_act": "gelu"}, "E-CONFIG-ACT"), ({"dtype": "float64"}, "E-CONFIG-DTYPE")],
)
def test_other_arithmetic_is_refused(changes, code, code_of):
    assert code_of(spec_of, **changes) == code


def test_the_older_name_of_dtype_counts():
    settings = config(torch_dtype="float16")
    del settings["dtype"]
    assert spec_from_config(settings, None).dtype == "float16"


WINDOWS = [
    {},
    {"sliding_window": None},
    {"sliding_window": 24},
    {"sliding_window": 24, "use_sliding_window": False},
    WINDOW,
    {**WINDOW, "max_window_layers": 0},
    {**WINDOW, "max_window_layers": 4},
    {"use_sliding_window": True, "max_window_layers": 4},
]
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 3}


@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, settings) for name in CONFIGS for settings in WINDOWS]
    + [("Qwen2", MIXED), ("Qwen3", MIXED)],
    ids=str,
)
def test_windows_are_those_of_transformers(name, settings):
    oracle = CONFIGS[name](num_hidden_layers=LAYERS, **settings)
    if name == "Llama":
        expected = [0] * LAYERS
    elif name == "Mistral":
        expected = [oracle.sliding_window or 0] * LAYERS
    else:
        expected = [
            oracle.sliding_window if kind == "sliding_attention" else 0
            for kind in oracle.layer_types
        ]
    assert list(family(name, **settings).windows) == expected


@pytest.mark.parametrize("stop", [7, [7], [7, 9], None])
def test_stop_ids_are_one_or_many(stop):
    wanted = {7: (7,), None: ()}.get(stop) if not isinstance(stop, list) else tuple(stop)
    assert spec_of(eos_token_id=stop).stop_ids == wanted


def test_stop_ids_of_generation_config_count_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config(eos_token_id=9)))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 9, 5]}))
    assert read_spec(tmp_path).stop_ids == (3, 5, 9)


@pytest.mark.parametrize("text", ["{", "[1]", '"text"', "[" * 100_000])
def test_a_config_that_is_no_json_object(tmp_path, text, code_of):
    (tmp_path / "config.json").write_text(text)
    assert code_of(read_spec, tmp_path) == "E-MODEL-JSON"


def test_no_folder_and_no_config(tmp_path, code_of):
    assert code_of(read_spec, tmp_path / "absent") == "E-MODEL-MISSING"
    assert code_of(read_spec, tmp_path) == "E-MODEL-MISSING"


def test_the_scheme_of_a_product_and_of_the_head():
    spec = spec_of(quantization_config=pack_quantized(bits=8, group_size=16))
    assert spec.quantization is not None
    scheme = spec.quantization.scheme("model.layers.0.mlp.up_proj")
    assert scheme is not None
    assert (scheme.bits, scheme.group_size, scheme.symmetric) == (8, 16, True)
    assert spec.quantization.scheme("lm_head") is None
