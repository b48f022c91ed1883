"""Rotary tables: transformers' formulas in float64 to the last bit, its float32 closely."""

from __future__ import annotations

import copy

import pytest
import torch

from isobit.shard.model.config_fields import ConfigFields
from isobit.shard.model.rotary import inverse_frequencies, rotary_tables
from isobit.shard.model.rotary_config import read_rotary

from .rotary_oracle import FAMILIES, KINDS, frequencies, in_float64, module_tables, random_settings

# transformers computes in float32: in base ** (i / dim) the exponent is off by some 2^-24, which
# ln(theta) < 17 multiplies; scalings add a handful of rounded operations.
FREQUENCY_BOUND = 64 * 2**-24
# theta ** -x here and 1 / theta ** x there: two roundings of float64, and those of llama3's blend.
# dynamic's theta is multiplied by factor - (factor - 1), which is 1 up to factor times a rounding.
FLOAT64_BOUND = {"dynamic": 128 * 2**-53}
# Formulas that are written here in the order of transformers' operations; the others are older, and
# bits of models that run today depend on them.
SAME_OPERATIONS = ("yarn", "longrope-short", "longrope-long")


def read(config, length):
    fields = ConfigFields(config)
    spec = read_rotary(fields, config["head_dim"], config["max_position_embeddings"])
    fields.raise_if_any()
    return spec.at_length(length)


CASES = [(kind, family) for kind in KINDS for family in FAMILIES]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_tables_are_those_of_transformers(kind, family):
    """50 random sets of settings of each kind.

    In float64 frequencies agree to the last bit or two, and so tables differ in no float32 number
    by more than its last bit. In float32, as transformers runs, frequencies differ by its rounding,
    and angles by that times the position.
    """
    for seed in range(50):
        config, length = random_settings(kind, seed)
        spec = read(copy.deepcopy(config), length)
        size = config["head_dim"]
        ours = inverse_frequencies(spec, size)
        assert ours.dtype == torch.float64
        narrow, factor = frequencies(family, copy.deepcopy(config), length)
        assert ((ours - narrow.double()).abs() / narrow.double()).max() < FREQUENCY_BOUND
        assert spec.attention_factor == factor
        with in_float64():
            wide, _ = frequencies(family, copy.deepcopy(config), length)
        assert wide.dtype == torch.float64
        if kind in SAME_OPERATIONS:
            assert torch.equal(ours, wide)
        else:
            assert ((ours - wide).abs() / wide).max() <= FLOAT64_BOUND.get(kind, 16 * 2**-53)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), wide)
        tables = rotary_tables(spec, size, length)
        for table, exact in zip(tables, (angles.cos(), angles.sin()), strict=True):
            expected = (exact * factor).float()
            if kind in SAME_OPERATIONS:
                assert torch.equal(table, expected)
            else:
                assert (table - expected).abs().max() <= 2**-23
        theirs = module_tables(family, copy.deepcopy(config), length)
        bound = factor * (length * FREQUENCY_BOUND * float(narrow.max()) + 2**-22)
        for table, module in zip(tables, theirs, strict=True):
            assert table.shape == module.shape
            assert (table - module).abs().max() <= bound


def test_older_kinds_have_the_bits_that_they_had():
    """Frequencies as they were before there were more kinds: models' answers depend on them."""
    for kind in ("default", "linear", "llama3"):
        config, length = random_settings(kind, 3)
        spec = read(config, length)
        size = config["head_dim"]
        exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
        plain = spec.theta**-exponents
        if kind == "linear":
            plain = plain / spec.factor
        if kind != "llama3":
            assert torch.equal(inverse_frequencies(spec, size), plain)
        angles = torch.outer(
            torch.arange(length, dtype=torch.float64), inverse_frequencies(spec, size)
        )
        cos, sin = rotary_tables(spec, size, length)
        assert torch.equal(cos, angles.cos().float())
        assert torch.equal(sin, angles.sin().float())


def test_dynamic_scaling_does_nothing_up_to_the_original_length():
    config, length = random_settings("dynamic", 0)
    plain = {**config, "rope_parameters": None, "rope_scaling": None}
    theta = read(config, length).theta
    same = read({**plain, "rope_theta": theta}, length)
    assert torch.equal(inverse_frequencies(read(config, length), 64), inverse_frequencies(same, 64))


def test_without_settings_theta_is_ten_thousand():
    config = {"head_dim": 64, "max_position_embeddings": 64}
    assert read(config, 64).theta == 10000.0
    assert read({**config, "rope_scaling": None, "rope_parameters": {}}, 64).kind == "default"


def test_tables_are_rounded_once_from_float64():
    """At position 4000 a float32 angle would be off by 1e-4; the tables are off by 2^-24."""
    spec = read({"head_dim": 64, "max_position_embeddings": 4096}, 4096)
    cos, sin = rotary_tables(spec, 64, 4096)
    assert cos.shape == sin.shape == (4096, 32)
    assert cos.dtype == sin.dtype == torch.float32
    angles = torch.arange(4096, dtype=torch.float64)[:, None] * inverse_frequencies(spec, 64)
    assert (cos.double() - angles.cos()).abs().max() <= 2**-24
    assert (sin.double() - angles.sin()).abs().max() <= 2**-24


def test_long_tables_are_made_in_pieces_of_the_same_numbers():
    spec = read({"head_dim": 16, "max_position_embeddings": 70000}, 70000)
    cos, _ = rotary_tables(spec, 16, 70000)
    last = 69999 * inverse_frequencies(spec, 16)
    assert torch.equal(cos[-1], last.cos().float())
