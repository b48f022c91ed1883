"""Rotary frequencies and tables: those of transformers, in float64."""

from __future__ import annotations

import pytest
import torch
from isobit.shard.rotary import inverse_frequencies, rotary_from_config, rotary_tables
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "llama3-short": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 64},
}
INITIAL = {**ROPE_INIT_FUNCTIONS, "default": LlamaRotaryEmbedding.compute_default_rope_parameters}

# transformers computes in float32: in base ** (i / dim) the exponent is off by some 2^-24, which
# ln(theta) < 14 multiplies; llama3 adds a handful of rounded operations.
FREQUENCY_BOUND = 64 * 2**-24


def settings_of(scaling, theta, head_size):
    return {
        "hidden_size": 4 * head_size,
        "num_attention_heads": 4,
        "head_dim": head_size,
        "max_position_embeddings": 4096,
        "rope_parameters": {**scaling, "rope_theta": theta},
    }


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6])
@pytest.mark.parametrize("head_size", [32, 48, 128])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name, head_size, theta):
    settings = settings_of(SCALINGS[name], theta, head_size)
    ours = inverse_frequencies(rotary_from_config(settings), head_size)
    theirs, factor = INITIAL[SCALINGS[name]["rope_type"]](LlamaConfig(**settings), device=None)
    assert factor == 1.0
    assert ours.dtype == torch.float64
    relative = (ours - theirs.double()).abs() / theirs.double()
    assert relative.max() < FREQUENCY_BOUND


def test_llama3_differs_from_default_where_it_should():
    """High frequencies are kept bit for bit, the lowest is divided by the factor exactly."""
    plain = inverse_frequencies(rotary_from_config(settings_of({}, 5e5, 128)), 128)
    scaled = inverse_frequencies(rotary_from_config(settings_of(LLAMA3, 5e5, 128)), 128)
    assert torch.equal(scaled[:20], plain[:20])
    assert torch.equal(scaled[-10:], plain[-10:] / 8)


@pytest.mark.parametrize("name", SCALINGS)
def test_the_older_spelling_means_the_same(name):
    scaling = {**SCALINGS[name]}
    scaling["type"] = scaling.pop("rope_type")
    newer = rotary_from_config(settings_of(SCALINGS[name], 5e5, 64))
    assert rotary_from_config({"rope_theta": 5e5, "rope_scaling": scaling}) == newer


def test_without_settings_theta_is_ten_thousand():
    assert rotary_from_config({}).theta == 10000.0
    assert rotary_from_config({"rope_scaling": None}).kind == "default"


def test_tables_are_rounded_once_from_float64():
    """At position 4000 a float32 angle would be off by 1e-4; the tables are off by 2^-24."""
    spec = rotary_from_config(settings_of({}, 10000.0, 64))
    cos, sin = rotary_tables(spec, 64, 4096)
    assert cos.shape == sin.shape == (4096, 32)
    assert cos.dtype == sin.dtype == torch.float32
    angles = torch.arange(4096, dtype=torch.float64)[:, None] * inverse_frequencies(spec, 64)
    assert (cos.double() - angles.cos()).abs().max() <= 2**-24
    assert (sin.double() - angles.sin()).abs().max() <= 2**-24
