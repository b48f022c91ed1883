"""config.json: four families read as transformers reads them, everything else named and refused."""

from __future__ import annotations

import json

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

from isobit.errors import DamagedError, InputError, NotSupportedError
from isobit.shard.model.spec import read_spec, spec_from_config
from isobit.shard.model.stop_ids import StopIds
from isobit.shard.plan.modules import layer_modules

from ..configs import config, pack_quantized

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


def test_all_offenders_are_named_at_once(error_of):
    """The class of the error is that of the worst of them: damaged, misused, not supported."""
    wrong = {"hidden_size": -1, "rms_norm_eps": "x", "hidden_act": "gelu", "rope_theta": 0}
    error = error_of(spec_of, **wrong)
    assert type(error) is DamagedError
    assert all(name in error.message for name in wrong)
    assert len(error.message.splitlines()) == len(wrong)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 300_000),
        ("max_position_embeddings", 2**64),
        ("max_position_embeddings", 512.0),
        ("vocab_size", 10**30),
        ("hidden_size", 10**12),
        ("intermediate_size", 2**40),
        ("num_attention_heads", 10**6),
        ("num_key_value_heads", 10**6),
        ("head_dim", 2**20),
        ("rms_norm_eps", 10**400),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rms_norm_eps", True),
        ("rope_theta", 10**400),
        ("tie_word_embeddings", "false"),
        ("tie_word_embeddings", 1),
        ("attention_bias", "true"),
        ("hidden_act", 3),
        ("dtype", {"a": 1}),
        ("eos_token_id", [[1]]),
        ("eos_token_id", True),
        ("eos_token_id", list(range(5000))),
    ],
    ids=str,
)
def test_every_number_has_bounds(key, value, error_of):
    error = error_of(spec_of_layers, **{key: value})
    assert type(error) is DamagedError
    assert key in error.message
    assert len(error.message) < 300, "a long value is shortened"


def spec_of_layers(**changes):
    return spec_from_config(config(**changes), None)


def test_sizes_of_the_largest_published_models_are_within_bounds():
    """Llama 3.1 405B's shape, and the longest context there is (Llama 4 Scout)."""
    big = spec_from_config(
        config(
            architectures=["LlamaForCausalLM"],
            num_hidden_layers=126,
            hidden_size=16384,
            intermediate_size=53248,
            num_attention_heads=128,
            num_key_value_heads=8,
            vocab_size=256000,
            max_position_embeddings=10_485_760,
        ),
        None,
    )
    assert big.max_positions == 10_485_760


@pytest.mark.parametrize("theta", ["large", -1, 0, True])
def test_rope_theta_is_a_positive_number(theta, code_of):
    assert code_of(spec_of, rope_theta=theta) == "E-CONFIG-ROPE"


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"hidden_act": "gelu"}, "E-CONFIG-ACT"), ({"dtype": "float64"}, "E-CONFIG-DTYPE")],
)
def test_other_arithmetic_is_not_supported(changes, code, error_of):
    error = error_of(spec_of, **changes)
    assert (type(error), error.code) == (NotSupportedError, code)


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


@pytest.mark.parametrize("stop", [7, [7], [7, 9], None])
def test_stop_ids_are_one_or_many(stop):
    wanted = {7: (7,), None: ()}.get(stop) if not isinstance(stop, list) else tuple(stop)
    assert spec_of(eos_token_id=stop).stop_ids == wanted


@pytest.mark.parametrize("stop", [10**30, -5, 200, [-1, 5]], ids=str)
def test_a_stop_id_outside_the_vocabulary_is_left_out_with_a_warning(stop, caplog):
    """transformers warns, and no token ever equals it."""
    assert spec_of(eos_token_id=stop).stop_ids == ((5,) if isinstance(stop, list) else ())
    assert "is not in the vocabulary, 0 to 199" in caplog.text


def folder_of(path, stop, generation):
    (path / "config.json").write_text(json.dumps(config(eos_token_id=stop)))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return path


@pytest.mark.parametrize(
    ("stop", "generation", "said"),
    [
        (9, [3, 9], False),
        ([3, 9], [9, 3], False),
        (9, 3, True),
        ([3, 9], 9, True),
        (9, None, False),
    ],
    ids=str,
)
def test_files_that_disagree_about_stop_tokens_are_named(tmp_path, stop, generation, said, caplog):
    """Where config.json has one that generation_config.json lacks, transformers goes on."""
    spec = read_spec(folder_of(tmp_path, stop, generation))
    assert 9 in spec.stop_ids
    assert ("stop tokens disagree" in caplog.text) == said


def test_stop_ids_know_where_they_come_from():
    found = StopIds(config=(9,), generation=(3, 5))
    assert found.ids == (3, 5, 9)
    assert found.sources == {"config.json": (9,), "generation_config.json": (3, 5)}
    assert StopIds(config=None).sources == {}


def test_stop_ids_of_generation_config_count_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config(eos_token_id=9)))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 9, 5]}))
    assert read_spec(tmp_path).stop_ids == (3, 5, 9)


TEXTS = {
    "cut": "{",
    "list": "[1]",
    "text": '"text"',
    "deep": "[" * 100_000,
    "deep-field": '{"a": ' + "[" * 20_000 + "]" * 20_000 + "}",
    "digits": '{"vocab_size": 1' + "0" * 5000 + "}",
    "two-values": '{"vocab_size": 200, "vocab_size": 300}',
    "two-values-inside": '{"rope_scaling": {"factor": 2, "factor": 4}}',
    "latin-1": '{"a": "\xe9"}',
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_config_that_is_no_json_object(tmp_path, text, error_of):
    (tmp_path / "config.json").write_text(TEXTS[text], encoding="latin-1")
    error = error_of(read_spec, tmp_path)
    assert (type(error), error.code) == (DamagedError, "E-MODEL-JSON")
    assert len(error.message) < 400


def test_a_huge_file_is_no_config(tmp_path, error_of):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    error = error_of(read_spec, tmp_path)
    assert type(error) is DamagedError
    assert "1073741824 bytes" in error.message


def test_a_field_that_is_deep_or_long_is_shortened_in_the_message(error_of):
    deep: list = []
    for _ in range(400):
        deep = [deep]
    for value in (deep, "x" * 10**6, [1] * 10**6):
        assert len(error_of(spec_of, hidden_size=value).message) < 300


def test_a_key_given_twice_with_one_value_is_fine(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config())[:-1] + ', "vocab_size": 200}')
    assert read_spec(tmp_path).vocab_size == 200


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
