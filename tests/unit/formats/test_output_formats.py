"""What an output format cannot store is refused before any work, all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from isobit.shard.formats.awq import quantization as read_awq
from isobit.shard.model.spec import spec_from_config
from isobit.shard.quantize.folder import QuantizeSettings, check_request, quantize_folder
from isobit.shard.quantize.output import FORMATS, output_format
from isobit.shard.quantize.output.base import named
from isobit.shard.quantize.scheme import module_schemes

from ...random_folder import save_random_folder
from ..configs import config

SMALL = config(num_hidden_layers=1, intermediate_size=128)
W8A8 = {"bits": 8, "group_size": -1, "int8_activations": True}


@pytest.fixture
def dense(tmp_path) -> Path:
    save_random_folder(tmp_path / "dense", SMALL)
    return tmp_path / "dense"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"format": "gptq", "symmetric": False}, ["zero points", "--format gptq_v2"]),
        ({"format": "gptq", **W8A8}, ["layers.0.mlp.up_proj", "int8 activations"]),
        ({"format": "gptq_v2", **W8A8}, ["layers.0.mlp.up_proj", "int8 activations"]),
        ({"format": "awq", **W8A8}, ["layers.0.mlp.up_proj", "int8 activations"]),
        ({"format": "awq", "bits": 8}, ["layers.0.self_attn.q_proj", "8 bits"]),
        ({"format": "awq", "keep": ("*.o_proj=8", "*.up_proj=8")}, ["o_proj", "up_proj", "8 bits"]),
    ],
    ids=str,
)
def test_what_cannot_be_stored_leaves_nothing(dense, settings, named, error_of):
    given = QuantizeSettings(**{"group_size": 32, **settings})
    error = error_of(quantize_folder, dense, dense.parent / "out", given)
    assert error.code == "E-QUANT-FORMAT"
    assert all(each in error.message for each in (settings["format"], *named))
    assert list(dense.parent.iterdir()) == [dense]


@pytest.mark.parametrize("form", ["gptq", "gptq_v2", "awq"])
def test_codes_that_do_not_fill_words_are_named_with_all_other_faults(form, error_of):
    """Two KV heads of 6 features: k and v have 12 outputs, one word and a half of 4 bits."""
    spec = spec_from_config(config(head_dim=6, num_attention_heads=16), None)
    settings = QuantizeSettings(group_size=32, symmetric=form != "gptq", format=form)
    message = error_of(module_schemes, spec, settings).message
    assert "layers.0-1.self_attn.k_proj, layers.0-1.self_attn.v_proj: 12 output features" in message
    assert ("zero points" in message) == (form == "gptq")
    assert "q_proj" not in message


def test_compressed_tensors_stores_everything():
    spec = spec_from_config(config(head_dim=6, num_attention_heads=16), None)
    module_schemes(spec, QuantizeSettings(group_size=32, symmetric=False))
    module_schemes(spec, QuantizeSettings(**W8A8))


@pytest.mark.parametrize("form", FORMATS)
def test_the_schemes_that_are_read_are_those_that_were_written(form):
    """But that AWQ always has zero points."""
    spec = spec_from_config(SMALL, None)
    kept = ("*.o_proj=16",) + (() if form == "awq" else ("*.up_proj=8",))
    settings = QuantizeSettings(group_size=32, symmetric=form != "awq", keep=kept, format=form)
    schemes = module_schemes(spec, settings)
    written = {**SMALL, "quantization_config": output_format(form).config(schemes)}
    read = spec_from_config(written, None)
    assert {name: read.scheme(name) for name in schemes} == schemes
    assert read.scheme("lm_head") is None


def test_zero_points_in_one_config_group_make_transformers_dequantize():
    """It expects the shape of unpacked zero points else; with several groups it takes the first."""
    spec, form = spec_from_config(SMALL, None), output_format("compressed-tensors")
    for symmetric, keep, wanted in (
        (False, (), True),
        (True, (), None),
        (False, ("*.o_proj=8",), None),
    ):
        settings = QuantizeSettings(group_size=32, symmetric=symmetric, keep=keep)
        assert form.config(module_schemes(spec, settings)).get("dequantize") is wanted


def test_awq_by_gptqmodel_leaves_modules_dense_by_dynamic():
    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    read = read_awq({**settings, "dynamic": {r"-:.*\.up_proj": {}, ".*down": {"group_size": 64}}})
    assert read.scheme("model.layers.0.mlp.up_proj") is None
    sizes = {
        name: scheme.group_size
        for name in ("model.layers.0.mlp.down_proj", "model.layers.0.mlp.gate_proj")
        if (scheme := read.scheme(name)) is not None
    }
    assert list(sizes.values()) == [64, 32]


def test_modules_are_named_shortly():
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1, 2, 4, 11)]
    text = named([*names, "model.layers.3.self_attn.q_proj"])
    assert text == "layers.0-2,4,11.mlp.up_proj, layers.3.self_attn.q_proj"


def test_a_request_is_checked_as_a_whole_before_any_work(dense, code_of):
    good = QuantizeSettings(group_size=32)
    check_request(dense, dense.parent / "out", good)
    assert code_of(check_request, dense, dense, good) == "E-OUT-EXISTS"
    assert code_of(check_request, dense, dense / "no" / "out", good) == "E-OUT-PARENT"
    bad = QuantizeSettings(group_size=64)
    assert code_of(check_request, dense, dense.parent / "out", bad) == "E-QUANT-GROUP"
