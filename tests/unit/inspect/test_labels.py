"""isobit inspect: what config.json says against what the tensors say."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from isobit.shard.inspect import inspect_folder

from ...golden.making.packing import pack_nibbles
from ...support import DENSE, GOLDEN, copy_model, save_tensors
from .inspection import LAYER, ZERO_WORD, codes_of, finding, set_config


@pytest.fixture
def gptq(tmp_path):
    """A copy of a golden GPTQ v1 checkpoint and its tensors, to be damaged."""
    folder = copy_model(GOLDEN / "gptq-v1", tmp_path / "model")
    return folder, load_file(folder / "model.safetensors")


def test_v2_zero_points_under_a_v1_label_name_both(gptq):
    folder, tensors = gptq
    for name, tensor in tensors.items():
        if name.endswith("qzeros"):
            tensor[:] = ZERO_WORD
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    assert codes_of(report, "error") == {"E-QUANT-LABEL"}
    found = finding(report, "E-QUANT-LABEL")
    assert found.what.startswith("stored zero points are 8, as in a gptq_v2 file")
    assert 'checkpoint_format to "gptq_v2"' in found.remedy
    assert report.format["version"] == "v2"
    assert list(report.zero_points["gptq 4-bit symmetric"]) == ["8"]


def quantize_by_hand(tensors: dict[str, torch.Tensor], taken_off: int) -> None:
    """Normal weights in every module, by minimum and maximum of each group of 16; zero points are
    stored with `taken_off` less."""
    drawn = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith("qweight")]:
        rows, n = tensors[name].shape
        w = torch.randn(rows * 8 // 16, 16, n, generator=drawn)
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        scale = (high - low) / 15
        zero = (-low / scale).round()
        codes = (w / scale + zero).round().clamp(0, 15)
        tensors[name] = pack_nibbles(codes.view(-1, n).T.long()).T.contiguous()
        stem = name.removesuffix("qweight")
        tensors[stem + "qzeros"] = pack_nibbles((zero[:, 0] - taken_off).long())
        tensors[stem + "scales"] = scale[:, 0].half()


@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("data", ["gptq", "gptq_v2"])
def test_asymmetric_zero_points_tell_their_version_by_the_mean_of_weights(tmp_path, label, data):
    folder = copy_model(GOLDEN / "gptq-v1-asymmetric-nibbles", tmp_path / "model")
    path = folder / "quantize_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "checkpoint_format": label}))
    tensors = load_file(folder / "model.safetensors")
    quantize_by_hand(tensors, 1 if data == "gptq" else 0)
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    if label == data:
        assert codes_of(report, "error") == set()
        return
    assert report.verdict == "damaged"
    found = finding(report, "E-QUANT-LABEL")
    assert f"read as {label}, as the config says" in found.what
    assert found.numbers["data"] == data
    assert f'checkpoint_format to "{data}"' in found.remedy


def test_labels_indices_and_zero_points_in_one_run(gptq):
    folder, tensors = gptq
    layer = LAYER.format(0)
    tensors[layer + "mlp.down_proj.g_idx"][5] = 99
    shuffled = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    tensors[layer + "mlp.gate_proj.g_idx"] = tensors[layer + "mlp.gate_proj.g_idx"][shuffled]
    tensors[layer + "mlp.up_proj.g_idx"][:] = -1
    tensors[layer + "self_attn.v_proj.g_idx"][0] = 1
    del tensors[layer + "self_attn.k_proj.g_idx"]
    tensors[layer + "self_attn.q_proj.qzeros"][:] = ZERO_WORD
    tensors[layer + "self_attn.k_proj.qzeros"][0, 0] = 0x12345677
    save_tensors(folder, tensors)
    other = {"bits": 8, "q_group_size": 32, "desc_act": True, "format": "gptq_v2", "damp": 1}
    (folder / "quantize_config.json").write_text(json.dumps(other))
    report = inspect_folder(folder)
    where = {(f.code, f.where) for f in report.findings if f.severity != "note"}
    assert where == {
        ("W-CONFIG-FIELD", "config.json"),
        ("E-QUANT-LABEL", "config.json, quantize_config.json"),
        ("E-QUANT-LABEL", layer + "self_attn.q_proj.qzeros"),
        ("E-QUANT-ZEROS", layer + "self_attn.k_proj.qzeros"),
        ("E-QUANT-GIDX", layer + "mlp.down_proj"),
        ("W-QUANT-GIDX", layer + "self_attn.v_proj"),
        ("W-QUANT-ACT-ORDER", "2 places"),
    }
    disagreement = next(f for f in report.findings if f.where.endswith("quantize_config.json"))
    assert set(disagreement.numbers) == {"bits", "desc_act", "format"}
    assert report.g_idx["down_proj"] == {"out of range": 1}
    assert report.g_idx["gate_proj"] == {"shuffled": 1}
    assert report.g_idx["up_proj"] == {"unset": 1}
    assert report.g_idx["k_proj"] == {"absent": 1}
    assert report.g_idx["o_proj"] == {"sequential": 1}
    apart = finding(report, "N-QUANT-APART").what
    assert "gate_proj, up_proj differ in g_idx" in apart
    assert "other weights agree" in next(
        f.remedy for f in report.findings if f.where.endswith("q_proj.qzeros")
    )


def test_a_config_without_quantization_beside_quantized_tensors(gptq):
    folder, _ = gptq
    set_config(folder, quantization_config=None)
    report = inspect_folder(folder)
    assert codes_of(report, "error") == {"E-QUANT-LABEL", "E-CKPT-TENSOR"}
    assert "*.qweight" in finding(report, "E-QUANT-LABEL").what


@pytest.mark.parametrize(
    ("fields", "code", "verdict"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "E-MODEL-ARCH", "not-supported"),
        ({"quantization_config": {"quant_method": "hqq"}}, "E-QUANT-METHOD", "not-supported"),
        ({"num_attention_heads": "six"}, "E-CONFIG-VALUE", "damaged"),
        ({"quantization_config": {"quant_method": "gptq"}}, "E-QUANT-SCHEME", "damaged"),
    ],
)
def test_what_config_cannot_say_does_not_stop_the_values(tmp_path, fields, code, verdict):
    folder = copy_model(DENSE, tmp_path / "model", **fields)
    assert (r := inspect_folder(folder)).verdict == verdict
    assert codes_of(r) == {code}
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_tensors(folder, tensors)
    assert codes_of(inspect_folder(folder)) == {code, "E-CKPT-NAN"}


def test_weights_without_config_are_still_read(tmp_path):
    folder = copy_model(DENSE, tmp_path / "model")
    (folder / "config.json").unlink()
    assert codes_of(inspect_folder(folder)) == {"E-MODEL-MISSING"}


@pytest.mark.parametrize(
    ("name", "code"), [("pytorch_model.bin", "E-CKPT-FORMAT"), ("notes.txt", "E-CKPT-MISSING")]
)
def test_nothing_to_inspect(tmp_path, name, code, code_of):
    (tmp_path / name).write_bytes(b"")
    assert code_of(inspect_folder, tmp_path) == code
