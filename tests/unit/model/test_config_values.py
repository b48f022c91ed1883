"""Values of config.json that no model has or isobit does not run: all named, with their bounds."""

from __future__ import annotations

import pytest

from isobit.errors import DamagedError, NotSupportedError
from isobit.shard.model.spec import spec_from_config

from ..configs import LAYERS, WINDOW, config, spec_of


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
    ("name", "dtype"),
    [("half", "float16"), ("float", "float32"), ("torch.half", "float16"), ("bfloat16",) * 2],
)
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_every_name_that_torch_has_for_a_dtype_is_known(key, name, dtype):
    absent = dict.fromkeys(("dtype", "torch_dtype"))
    assert spec_of(**{**absent, key: name}).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"hidden_act": "gelu"}, "E-CONFIG-ACT"), ({"dtype": "float64"}, "E-CONFIG-DTYPE")],
)
def test_other_arithmetic_is_not_supported(changes, code, error_of):
    error = error_of(spec_of, **changes)
    assert (type(error), error.code) == (NotSupportedError, code)


def test_a_field_that_is_deep_or_long_is_shortened_in_the_message(error_of):
    deep: list = []
    for _ in range(400):
        deep = [deep]
    for value in (deep, "x" * 10**6, [1] * 10**6):
        assert len(error_of(spec_of, hidden_size=value).message) < 300
