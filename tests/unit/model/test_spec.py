"""config.json: four families read as transformers reads them, everything else named and refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.activations import ACT2FN

from isobit.errors import InputError, NotSupportedError
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.modules import layer_modules

from ..configs import LAYERS, WINDOW, config, pack_quantized, spec_of

CONFIGS = {
    "Llama": LlamaConfig,
    "Mistral": MistralConfig,
    "Qwen2": Qwen2Config,
    "Qwen3": Qwen3Config,
}


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


def test_kv_heads_of_null_are_as_many_as_heads():
    assert spec_of(num_key_value_heads=None).kv_heads == 6


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_are_those_of_transformers(name):
    """What a config that leaves fields out means; sizes that fit all of these defaults."""
    settings = config(
        architectures=[f"{name}ForCausalLM"], num_attention_heads=32, hidden_size=4096
    )
    dropped = ("num_key_value_heads", "max_position_embeddings", "tie_word_embeddings")
    for key in (*dropped, "rms_norm_eps", "hidden_act"):
        del settings[key]
    spec, oracle = spec_from_config(settings, None), CONFIGS[name]()
    assert spec.kv_heads == oracle.num_key_value_heads
    assert spec.max_positions == oracle.max_position_embeddings
    assert spec.tied_embeddings == oracle.tie_word_embeddings
    assert spec.norm_eps == oracle.rms_norm_eps
    assert spec.rotary.theta == oracle.rope_parameters["rope_theta"]
    assert spec.head_size == (getattr(oracle, "head_dim", None) or 128)


@pytest.mark.parametrize("names", [["GPTBigCodeForCausalLM"], [], None, [None], "", {}])
def test_an_unknown_architecture_lists_the_known_ones(names, error_of):
    error = error_of(spec_of, architectures=names)
    assert error.code == "E-MODEL-ARCH"
    assert "LlamaForCausalLM" in error.message


@pytest.mark.parametrize(
    ("named", "family"),
    [
        ("Qwen2ForCausalLM", "qwen2"),
        (["LLaMAForCausalLM"], "llama"),
        (["Qwen2ForCausalLM"] * 2, "qwen2"),
    ],
    ids=str,
)
def test_architectures_as_old_files_spell_them(named, family):
    """A string alone, and the name of the first conversions of Llama; transformers loads both."""
    assert spec_of(architectures=named).family == family


@pytest.mark.parametrize("other", ["LlamaForCausalLM", "MambaForCausalLM"])
def test_two_different_architectures_are_no_answer(other, error_of):
    error = error_of(spec_of, architectures=["Qwen2ForCausalLM", other])
    assert (type(error), error.code) == (InputError, "E-MODEL-ARCH")
    assert f"'Qwen2ForCausalLM', '{other}'" in error.message


def test_swish_is_another_name_of_silu():
    assert spec_of(hidden_act="swish") == spec_of()
    x = torch.linspace(-9, 9, 999)
    assert torch.equal(ACT2FN["swish"](x), ACT2FN["silu"](x))


@pytest.mark.parametrize("names", [None, []], ids=str)
def test_model_type_stands_in_for_architectures(names, caplog):
    assert spec_of(architectures=names, model_type="qwen2") == spec_of()
    assert "names no architecture" in caplog.text


def test_architectures_and_model_type_that_contradict_each_other(error_of):
    error = error_of(spec_of, model_type="llama")
    assert type(error) is InputError
    assert "Qwen2ForCausalLM" in error.message
    assert "'llama'" in error.message


def test_a_wrapper_around_a_text_model_is_not_supported_by_name(error_of):
    outer = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    error = error_of(spec_from_config, {**outer, "text_config": config(model_type="mistral")}, None)
    assert (type(error), error.code) == (NotSupportedError, "E-MODEL-ARCH")
    assert "text_config" in error.message
    assert "Mistral3ForConditionalGeneration" in error.message


@pytest.mark.parametrize(
    ("name", "key", "value", "logged"),
    [
        ("Mistral", "attention_bias", True, True),
        ("Mistral", "mlp_bias", True, True),
        ("Qwen2", "mlp_bias", True, True),
        ("Qwen2", "attention_bias", False, True),
        ("Qwen3", "mlp_bias", True, True),
        ("Qwen2", "attention_bias", True, False),
        ("Mistral", "attention_bias", False, False),
        ("Llama", "mlp_bias", True, False),
    ],
)
def test_biases_are_where_transformers_has_them(name, key, value, logged, caplog):
    """A field that a family does not read is ignored, with a warning where it would matter."""
    spec = family(name, **{key: value})
    settings = config(num_hidden_layers=1, **{key: value})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            CONFIGS[name](**{k: v for k, v in settings.items() if k != "architectures"})
        )
    names = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    modules = layer_modules(spec, 0).values()
    assert {f"{module.name}.bias" for module in modules if module.bias} == names
    assert (key in caplog.text) == logged


def test_a_bias_field_of_another_program_names_the_right_one(caplog):
    assert not family("Llama", bias=True).o_bias
    assert "attention_bias" in caplog.text


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


def test_the_scheme_of_a_product_and_of_the_head():
    spec = spec_of(quantization_config=pack_quantized(bits=8, group_size=16))
    assert spec.quantization is not None
    scheme = spec.quantization.scheme("model.layers.0.mlp.up_proj")
    assert scheme is not None
    assert (scheme.bits, scheme.group_size, scheme.symmetric) == (8, 16, True)
    assert spec.quantization.scheme("lm_head") is None
