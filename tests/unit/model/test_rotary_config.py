"""Spellings of rotary settings: what transformers takes, or refused with the fields' names."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, modeling_rope_utils

from isobit.errors import DamagedError, InputError, NotSupportedError
from isobit.shard.model.rotary import inverse_frequencies
from isobit.shard.model.spec import at_length, spec_from_config
from isobit.shard.plan.plan import PlanSettings, make_plan

from ..configs import config

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": 128,
}
TYPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 64},
    "llama3 without a length": LLAMA3,
    "yarn": YARN,
    "yarn of null": {**YARN, "factor": None},
    "longrope": LONG,
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}


def spec_of(**changes):
    return spec_from_config(config(architectures=["LlamaForCausalLM"], **changes), None)


def assert_as_transformers(**changes):
    """Frequencies of our reading are those of transformers' reading of the same fields."""
    spec = spec_of(**copy.deepcopy(changes))
    shape = config()
    names = ("hidden_size", "num_attention_heads", "max_position_embeddings")
    made = LlamaConfig(**{name: shape[name] for name in names}, **copy.deepcopy(changes))
    init = modeling_rope_utils.ROPE_INIT_FUNCTIONS[made.rope_parameters["rope_type"]]
    theirs, factor = init(made)
    ours = inverse_frequencies(spec.rotary, spec.head_size)
    assert torch.allclose(ours, theirs.double(), rtol=4e-6, atol=0)
    assert spec.rotary.attention_factor == factor


@pytest.mark.parametrize("name", TYPES)
def test_every_spelling_means_what_it_means_to_transformers(name):
    rope = TYPES[name]
    older = {key: value for key, value in rope.items() if key != "rope_type"}
    assert_as_transformers(rope_parameters={**rope, "rope_theta": 5e5})
    assert_as_transformers(rope_parameters=rope, rope_theta=5e5)
    assert_as_transformers(rope_scaling=rope, rope_theta=5e5)
    assert_as_transformers(rope_scaling={**older, "type": rope["rope_type"]}, rope_theta=5e5)
    assert_as_transformers(rope_scaling={**rope, "type": rope["rope_type"]}, rope_theta=5e5)


def test_a_length_beside_the_settings_is_taken():
    rope = {key: value for key, value in YARN.items() if "original" not in key}
    assert_as_transformers(rope_parameters=rope, original_max_position_embeddings=64)
    assert spec_of(rope_scaling=rope).rotary.original_context == 512


def test_settings_given_twice_that_agree_are_fine():
    both = {"rope_parameters": {**YARN, "rope_theta": 5e5}, "rope_scaling": YARN}
    assert_as_transformers(**both, rope_theta=5e5)
    assert spec_of(**both, rope_theta=5e5) == spec_of(rope_scaling=YARN, rope_theta=5e5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": YARN},
            ("rope_parameters", "rope_scaling", "yarn", "1000000.0", "10000"),
        ),
        (
            {"rope_parameters": {**YARN, "rope_theta": 1e6}, "rope_scaling": YARN},
            ("rope_parameters", "rope_scaling", "1000000.0", "10000"),
        ),
        (
            {"rope_parameters": YARN, "rope_scaling": {**YARN, "factor": 2.0}},
            ("rope_parameters", "rope_scaling", "factor: 4.0", "factor: 2.0"),
        ),
        (
            {"rope_scaling": TYPES["llama3"], "original_max_position_embeddings": 96},
            ("original_max_position_embeddings", "64", "96"),
        ),
        (
            {"rope_parameters": {**YARN, "rope_theta": 1e6}, "rope_theta": 5e5},
            ("rope_theta", "1e+06", "500000"),
        ),
        ({"rope_scaling": {**YARN, "type": "linear"}}, ("rope_type", "'yarn'", "'linear'")),
    ],
    ids=str,
)
def test_contradictions_name_both_fields_and_both_values(changes, named, error_of):
    error = error_of(spec_of, **changes)
    assert (type(error), error.code) == (InputError, "E-CONFIG-ROPE")
    for each in named:
        assert each in error.message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "0.25"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "'proportional'"),
        ({"rope_scaling": {"type": "su"}}, "'su'"),
        ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [1]}}, "'mrope'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "'full_attention'",
        ),
    ],
    ids=str,
)
def test_what_is_valid_and_not_implemented_is_named(changes, named, error_of):
    error = error_of(spec_of, **changes)
    assert (type(error), error.code) == (NotSupportedError, "E-CONFIG-ROPE")
    assert named in error.message
    assert "not implemented" in error.message


def test_a_partial_rotary_factor_of_one_is_the_whole_head():
    assert spec_of(partial_rotary_factor=1.0) == spec_of()


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ({"rope_type": "linear"}, "factor is absent"),
        ({"rope_type": "linear", "factor": 0}, "factor is 0"),
        ({"rope_type": "linear", "factor": "4"}, "factor is '4'"),
        ({"rope_type": "linear", "factor": True}, "factor is True"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor is nan"),
        ({"rope_type": "yarn", "factor": 10**400}, "factor is 1000"),
        ({"rope_type": "yarn"}, "factor is absent"),
        ({**YARN, "original_max_position_embeddings": 2**64}, "original_max"),
        ({**YARN, "original_max_position_embeddings": 0.5}, "original_max"),
        ({**YARN, "truncate": "no"}, "truncate"),
        ({**YARN, "attention_factor": -1}, "attention_factor"),
        ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor"),
        ({**LONG, "short_factor": [1.0] * 7}, "short_factor is 7 numbers, expected 8"),
        ({**LONG, "long_factor": [0.0] * 8}, "long_factor"),
        ({**LONG, "long_factor": None}, "long_factor"),
        ({"rope_type": "default", "rope_theta": float("inf")}, "rope_theta"),
        ({"rope_type": 3}, "rope_type is 3"),
        ("linear", "is 'linear', expected a JSON object"),
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_numbers_that_no_model_has(key, rope, named, error_of):
    error = error_of(spec_of, **{key: rope})
    assert (type(error), error.code) == (DamagedError, "E-CONFIG-ROPE")
    assert named in error.message
    assert key in error.message


def test_fields_that_a_type_does_not_know_are_named(caplog):
    spec_of(rope_scaling={**YARN, "finetuned": True})
    assert "finetuned = True" in caplog.text


def test_longrope_is_chosen_once_by_length_and_is_part_of_the_hash():
    spec = spec_of(rope_scaling=LONG)
    assert (spec.max_positions, spec.position_limit, spec.rotary.variant) == (128, 512, "short")
    long = at_length(spec, 129)
    assert (long.max_positions, long.rotary.variant) == (129, "long")
    assert at_length(long, 128) == spec
    settings = PlanSettings(degree=2)
    hashes = [make_plan(each, settings).content_hash() for each in (spec, long, at_length(spec, 9))]
    assert hashes[0] == hashes[2] != hashes[1]
    line = long.rotary.line(129)
    assert line is not None
    assert "long factors" in line
    assert "129" in line


def test_the_hash_of_other_plans_is_what_it_was():
    """Recorded before plans knew of rotary factors."""
    plan = make_plan(spec_from_config(config(), None), PlanSettings(degree=2))
    assert plan.content_hash() == "ad11bb5bfe79a15b"
    assert make_plan(spec_of(rope_scaling=YARN), PlanSettings()).rotary_variant == ""


@pytest.mark.parametrize(
    ("rope", "default", "most"),
    [
        (None, 512, 512),
        (TYPES["llama3"], 512, 512),
        (TYPES["linear"], 512, 2048),
        (YARN, 512, 512),
        ({**YARN, "original_max_position_embeddings": 512}, 512, 2048),
        (LONG, 128, 512),
    ],
    ids=str,
)
def test_how_long_a_sequence_may_be(rope, default, most, error_of):
    spec = spec_of(rope_scaling=rope)
    assert (spec.max_positions, spec.position_limit) == (default, most)
    assert at_length(spec, most).max_positions == most
    for length in (0, most + 1):
        error = error_of(at_length, spec, length)
        assert (type(error), error.code) == (InputError, "E-PLAN-LENGTH")
        assert str(most) in error.message


def test_dynamic_scaling_beyond_its_length_is_not_supported(error_of):
    spec = spec_of(rope_scaling=TYPES["dynamic"])
    assert spec.max_positions == spec.position_limit == 512
    error = error_of(at_length, spec, 513)
    assert (type(error), error.code) == (NotSupportedError, "E-PLAN-LENGTH")
    assert "--max-model-len 512" in error.message


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_type_that_says_nothing_is_no_default(key, name, value, error_of):
    """transformers ends in a KeyError there; without the field it means the default."""
    error = error_of(spec_of, **{key: {name: value, "factor": 2.0}})
    assert (type(error), error.code) == (DamagedError, "E-CONFIG-ROPE")
    assert f"{name} is {value!r}, expected one of default, linear" in error.message
    rope = {"type": None, "rope_type": None, name: "linear", "factor": 2.0}
    assert spec_of(**{key: rope}).rotary.kind == "linear"


@pytest.mark.parametrize("share", [1, 1.0, "1", "1.0", None])
def test_heads_that_are_turned_as_a_whole_are_no_partial_rotary(share):
    assert spec_of(partial_rotary_factor=share) == spec_of()
