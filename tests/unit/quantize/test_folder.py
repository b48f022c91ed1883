"""Quantizing a folder: what is written, what is refused, and that nothing half-done stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import unpack_from_int32
from safetensors.torch import load_file

from isobit.shard.quantize.folder import QuantizeSettings, quantize_folder

from ...random_folder import save_random_folder
from ..configs import config, pack_quantized

SMALL = config(num_hidden_layers=1, intermediate_size=128)
UP = "model.layers.0.mlp.up_proj"
GROUPS_OF_32 = QuantizeSettings(bits=4, group_size=32)


@pytest.fixture
def dense(tmp_path) -> Path:
    save_random_folder(tmp_path / "dense", SMALL)
    return tmp_path / "dense"


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 8), (8, 32), (8, -1)])
def test_what_is_written_is_the_source_within_half_a_step(dense, bits, group_size):
    """Every tensor through the packages: safetensors reads it, compressed-tensors unpacks it."""
    out = dense.parent / "out"
    report = quantize_folder(dense, out, QuantizeSettings(bits=bits, group_size=group_size))
    source, written = load_file(dense / "model.safetensors"), load_file(out / "model.safetensors")
    for name, tensor in source.items():
        module = name.removesuffix(".weight")
        if module not in report.sqnr_db:
            assert torch.equal(written.pop(name), tensor), name
            continue
        shape = written.pop(f"{module}.weight_shape")
        scales = written.pop(f"{module}.weight_scale").double()
        words = written.pop(f"{module}.weight_packed")
        assert shape.tolist() == list(tensor.shape)
        codes = unpack_from_int32(words, bits, torch.Size(shape.tolist())).double()
        step = scales.repeat_interleave(tensor.shape[1] // scales.shape[1], dim=1)
        half_step = 0.5 + (1 << (bits - 1)) * 2**-8
        assert ((codes * step - tensor.double()).abs() <= half_step * step).all(), module
    assert not written
    assert len(report.sqnr_db) == 7


def test_the_config_says_what_was_done_and_keeps_the_rest(dense):
    quantize_folder(dense, dense.parent / "out", GROUPS_OF_32)
    written = json.loads((dense.parent / "out" / "config.json").read_text())
    quantization = written.pop("quantization_config")
    assert written == SMALL
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "pack-quantized"
    weights = quantization["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["strategy"]) == (4, 32, "group")


def test_signal_to_noise_is_that_of_the_written_weights(dense):
    out = dense.parent / "out"
    report = quantize_folder(dense, out, GROUPS_OF_32)
    source, written = load_file(dense / "model.safetensors"), load_file(out / "model.safetensors")
    weight = source[f"{UP}.weight"].double()
    codes = unpack_from_int32(written[f"{UP}.weight_packed"], 4, weight.shape).double()
    scales = written[f"{UP}.weight_scale"].double().repeat_interleave(32, dim=1)
    power, noise = weight.square().sum(), (codes * scales - weight).square().sum()
    assert report.sqnr_db[UP] == pytest.approx(float(10 * (power / noise).log10()), abs=1e-3)


def test_progress_ends_at_the_number_of_tensors(dense):
    seen = []
    quantize_folder(dense, dense.parent / "out", GROUPS_OF_32, lambda *step: seen.append(step))
    total = len(load_file(dense / "model.safetensors"))
    assert seen == [(done, total) for done in range(total + 1)]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"bits": 3}, "E-QUANT-SCHEME"),
        ({"bits": 4, "group_size": -1}, "E-QUANT-SCHEME"),
        ({"group_size": 0}, "E-QUANT-SCHEME"),
        ({"group_size": -2}, "E-QUANT-SCHEME"),
        ({"group_size": 12}, "E-QUANT-SCHEME"),
        ({"group_size": 64}, "E-QUANT-GROUP"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_leave_nothing(dense, settings, code, code_of):
    out = dense.parent / "out"
    assert code_of(quantize_folder, dense, out, QuantizeSettings(**settings)) == code
    assert list(dense.parent.iterdir()) == [dense]


def test_a_group_size_that_divides_no_input_names_products_and_a_way_out(dense, error_of):
    settings = QuantizeSettings(group_size=64)
    message = error_of(quantize_folder, dense, dense.parent / "out", settings).message
    assert "self_attn.q_proj: 96 (1.50 groups)" in message
    assert "mlp.down_proj" not in message
    assert "Group sizes that do: 32, 16, 8" in message


def test_an_output_that_exists_is_not_touched(dense, code_of):
    out = dense.parent / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    assert code_of(quantize_folder, dense, out, GROUPS_OF_32) == "E-OUT-EXISTS"
    assert (out / "mine").read_text() == "precious"
    assert {path.name for path in dense.parent.iterdir()} == {"dense", "out"}


def test_an_output_without_a_parent(dense, code_of):
    out = dense.parent / "no" / "out"
    assert code_of(quantize_folder, dense, out, GROUPS_OF_32) == "E-OUT-PARENT"


def test_a_quantized_source_is_refused(tmp_path, code_of):
    source = tmp_path / "int4"
    save_random_folder(source, {**SMALL, "quantization_config": pack_quantized()})
    assert code_of(quantize_folder, source, tmp_path / "out", GROUPS_OF_32) == "E-QUANT-TWICE"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [f"{UP}.weight", "model.norm.weight"])
def test_a_source_that_is_not_finite_leaves_nothing(tmp_path, name, value, error_of):
    tensors = save_random_folder(tmp_path / "bad", SMALL)
    tensors[name].view(-1)[5] = value
    save_random_folder(tmp_path / "bad", SMALL, **tensors)
    error = error_of(quantize_folder, tmp_path / "bad", tmp_path / "out", GROUPS_OF_32)
    assert error.code == "E-CKPT-NAN"
    assert name in error.message
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_source_that_lacks_tensors_leaves_nothing(tmp_path, error_of):
    save_random_folder(tmp_path / "bad", SMALL, **{f"{UP}.weight": None})
    error = error_of(quantize_folder, tmp_path / "bad", tmp_path / "out", GROUPS_OF_32)
    assert error.code == "E-CKPT-TENSOR"
    assert UP in error.message
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_an_interrupt_leaves_nothing(dense):
    def interrupt(done: int, total: int) -> None:
        if done == total - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_folder(dense, dense.parent / "out", GROUPS_OF_32, interrupt)
    assert list(dense.parent.iterdir()) == [dense]
