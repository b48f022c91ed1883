"""isobit inspect: each kind of damage is found, and healthy checkpoints of every format are not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from isobit.shard.checkpoint.checkpoint import INDEX, open_checkpoint
from isobit.shard.checkpoint.safetensors_file import SliceReader
from isobit.shard.formats import quantized_format
from isobit.shard.inspect import inspect_folder
from isobit.shard.inspect import tensors as inspect_tensors
from isobit.shard.inspect.quantized import quantized_modules
from isobit.shard.model.spec import read_spec

from ...support import DENSE, GOLDEN, INT4, copy_model, save_tensors
from .inspection import LAYER, ZERO_WORD, codes_of, finding, set_config

CASES = sorted(p.parent.name for p in GOLDEN.glob("*/model.safetensors"))
# What is truly odd about some of the golden checkpoints.
ODDITIES = {
    "awq-gptqmodel": {"W-CONFIG-FIELD"},
    "gptq-v1-asymmetric-nibbles": {"W-QUANT-WRAP", "W-CODES-SATURATED"},
    "gptq-v1-asymmetric-words": {"W-QUANT-WRAP"},
}


@pytest.fixture
def int4(tmp_path):
    """A copy of the shipped int4 model and its tensors, to be damaged."""
    folder = copy_model(INT4, tmp_path / "model")
    return folder, load_file(folder / "model.safetensors")


# Healthy checkpoints


@pytest.mark.parametrize("model", [DENSE, INT4], ids=["dense", "int4"])
def test_the_shipped_models_are_healthy(model):
    report = inspect_folder(model)
    assert (report.verdict, report.findings) == ("healthy", [])


@pytest.mark.parametrize("case", CASES)
def test_golden_checkpoints_are_healthy(case):
    report = inspect_folder(GOLDEN / case)
    assert codes_of(report, "error") == set()
    assert codes_of(report, "warning") <= ODDITIES.get(case, set())


@pytest.mark.parametrize("case", CASES)
def test_codes_and_dead_groups_equal_what_the_format_readers_read(case):
    """The readers of shard/formats unpack every code; inspection counts packed bytes."""
    folder = GOLDEN / case
    spec, checkpoint = read_spec(folder), open_checkpoint(folder)
    rows = {row["module"]: row for row in inspect_folder(folder).damage}
    modules = [m for m in quantized_modules(spec) if m.scheme.format != "bnb-nf4"]
    reader = SliceReader()
    for module in modules:
        piece = quantized_format(module.scheme.format).read_slice(
            checkpoint, reader, module.name, module.scheme, slice(0, module.n), slice(0, module.k)
        )
        top = (1 << module.scheme.bits) - 1
        ends = ((piece.codes == 0) | (piece.codes == top)).double().mean()
        assert rows[module.name]["saturated"] == pytest.approx(float(ends), abs=1e-6)
        zeros = piece.zeros if piece.zeros is not None else torch.tensor([[(top + 1) // 2]])
        shape = (module.n, module.scheme.groups(module.k))
        off = (piece.codes != zeros.expand(shape)[:, piece.groups]).int()
        alive = torch.zeros(shape, dtype=torch.int32).index_add_(1, piece.groups, off)
        assert rows[module.name]["dead_groups"] == int(((alive == 0) | (piece.scales == 0)).sum())
    reader.close()


def test_small_pieces_change_nothing(monkeypatch):
    whole = inspect_folder(INT4)
    monkeypatch.setattr(inspect_tensors, "PIECE_BYTES", 1 << 10)
    pieces = inspect_folder(INT4)
    for report in (whole, pieces):
        object.__setattr__(report, "throughput_mb_s", 0)
    assert whole.report() == pieces.report()


def test_progress_ends_with_every_byte_and_hashes_count_too():
    calls = []
    report = inspect_folder(DENSE, sha256=True, progress=lambda *call: calls.append(call))
    size = (DENSE / "model.safetensors").stat().st_size
    assert calls[-1] == (report.tensors["bytes"] + size,) * 2
    assert len(report.files[0]["sha256"]) == 64


# Damage


def test_many_damages_are_listed_in_one_run(int4):
    folder, tensors = int4
    tensors[LAYER.format(0) + "mlp.up_proj.weight_scale"][3, 1] = torch.nan
    tensors[LAYER.format(0) + "mlp.up_proj.weight_scale"][4, 1] = 0
    tensors[LAYER.format(0) + "mlp.up_proj.weight_scale"][5, 1] = -1
    tensors[LAYER.format(1) + "mlp.down_proj.weight_packed"][:] = -1
    tensors[LAYER.format(2) + "mlp.down_proj.weight_packed"][7] = ZERO_WORD
    tensors[LAYER.format(3) + "self_attn.q_proj.weight_packed"][5, :4] = ZERO_WORD
    tensors[LAYER.format(3) + "self_attn.o_proj.weight_shape"][1] = 7
    del tensors["model.norm.weight"]
    tensors["model.vision.weight"] = torch.ones(3)
    tensors[LAYER.format(0) + "self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    name = LAYER.format(4) + "input_layernorm.weight"
    tensors[name] = torch.zeros_like(tensors[name])
    tensors = {key: tensors[key] for key in sorted(tensors)}
    save_tensors(folder, tensors)
    set_config(folder, intermediate_size=448)
    report = inspect_folder(folder)
    assert report.verdict == "damaged"
    assert {(f.severity, f.code, f.where) for f in report.findings} == {
        ("error", "E-CONFIG-SHAPE", "config.json: intermediate_size"),
        ("error", "E-CONFIG-SHAPE", LAYER.format(3) + "self_attn.o_proj.weight_shape"),
        ("error", "E-CKPT-TENSOR", "model.norm.weight"),
        ("error", "E-CKPT-NAN", LAYER.format(0) + "mlp.up_proj.weight_scale"),
        ("error", "E-CODES-SATURATED", LAYER.format(1) + "mlp.down_proj"),
        ("error", "E-CODES-STUCK", LAYER.format(1) + "mlp.down_proj"),
        ("warning", "W-CKPT-EXTRA", "2 places"),
        ("warning", "W-CKPT-ZERO", name),
        ("warning", "W-SCALE-ZERO", LAYER.format(0) + "mlp.up_proj.weight_scale"),
        ("warning", "W-SCALE-SIGN", LAYER.format(0) + "mlp.up_proj.weight_scale"),
        ("warning", "W-CODES-DEAD", "3 places"),
    }
    severities = [f.severity for f in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    dead = finding(report, "W-CODES-DEAD").numbers
    assert dead[LAYER.format(2) + "mlp.down_proj"] == {
        "dead_groups": 13,
        "groups": 288 * 13,
        "dead_rows": 1,
    }
    assert report.damage[0]["module"] == LAYER.format(1) + "mlp.down_proj"
    assert report.damage[0]["saturated"] == 1
    assert report.tensors["not_finite"] == {
        LAYER.format(0) + "mlp.up_proj.weight_scale": {"nan": 1, "infinite": 0}
    }
    json.dumps(report.report(), allow_nan=False)


def test_a_wrong_intermediate_size_names_the_true_one(tmp_path):
    folder = copy_model(INT4, tmp_path / "model", intermediate_size=448)
    found = inspect_folder(folder).findings
    assert [f.code for f in found] == ["E-CONFIG-SHAPE"]
    assert found[0].numbers["config"] == 448
    assert found[0].numbers["tensors"] == 416
    assert "isobit pad" in found[0].remedy


@pytest.mark.parametrize(
    ("field", "value", "true"),
    [("num_hidden_layers", 4, 5), ("num_hidden_layers", 6, 5), ("vocab_size", 1999, 2000)],
)
def test_other_edited_sizes_are_one_finding_each(tmp_path, field, value, true):
    folder = copy_model(DENSE, tmp_path / "model", layer_types=None, **{field: value})
    report = inspect_folder(folder)
    # A vocabulary that is too small also leaves out the stop token: a note, and no second error.
    errors = [f.where for f in report.findings if f.severity == "error"]
    assert errors == [f"config.json: {field}"]
    assert report.findings[0].numbers["tensors"] == true


def test_one_wrong_shape_does_not_outvote_config(int4):
    folder, tensors = int4
    name = LAYER.format(0) + "mlp.up_proj.weight_packed"
    tensors[name] = tensors[name][:-8].clone()
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    assert codes_of(report) == {"E-CONFIG-SHAPE"}
    assert report.findings[0].where == name


def test_wrong_dtypes_are_listed_with_those_expected(int4):
    folder, tensors = int4
    for layer in range(5):
        name = LAYER.format(layer) + "mlp.up_proj.weight_packed"
        tensors[name] = tensors[name].float()
    save_tensors(folder, tensors)
    found = finding(inspect_folder(folder), "E-CKPT-DTYPE")
    assert found.where == "model.layers.*.mlp.up_proj.weight_packed (5 layers)"
    assert "float32, expected int32" in found.what


def test_a_truncated_file_is_inspected_as_far_as_it_goes(int4):
    folder, tensors = int4
    tensors[LAYER.format(0) + "mlp.up_proj.weight_scale"][3, 1] = torch.inf
    save_tensors(folder, tensors)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3000)
    report = inspect_folder(folder)
    assert codes_of(report, "error") == {"E-CKPT-TRUNCATED", "E-CKPT-NAN"}
    lost = finding(report, "E-CKPT-TRUNCATED").numbers["tensors"]
    assert "model.norm.weight" in lost
    assert f"{len(lost)} tensors lie beyond the end" in finding(report, "E-CKPT-TRUNCATED").what


def test_a_missing_shard_and_a_broken_one_hide_nothing_else(tmp_path):
    folder = copy_model(DENSE, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {f"{part}.safetensors": {} for part in "abc"}
    weight_map = {}
    for name, tensor in tensors.items():
        file = "a" if ".layers.0." in name else "b" if ".layers.1." in name else "c"
        files[f"{file}.safetensors"][name] = tensor
        weight_map[name] = f"{file}.safetensors"
    files["c.safetensors"]["model.norm.weight"][5] = torch.nan
    for file, content in files.items():
        save_file(content, folder / file)
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {**weight_map, "ghost": "c.safetensors"}})
    )
    (folder / "a.safetensors").unlink()
    (folder / "b.safetensors").write_bytes(b"no header")
    report = inspect_folder(folder)
    assert codes_of(report) == {
        "E-CKPT-MISSING",
        "E-CKPT-TRUNCATED",
        "E-CKPT-INDEX",
        "E-CKPT-NAN",
    }


def test_a_folder_in_the_place_of_a_file(tmp_path):
    folder = copy_model(DENSE, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    (folder / "second.safetensors").mkdir()
    assert codes_of(inspect_folder(folder, sha256=True)) == {"E-CKPT-MISSING"}


def test_overlapping_tensors_are_an_error(tmp_path):
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": fields, "b": {**fields, "data_offsets": [4, 12]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(12)
    (tmp_path / "model.safetensors").write_bytes(data)
    assert "a and b from byte" in finding(inspect_folder(tmp_path), "E-CKPT-OVERLAP").what


def test_a_hole_in_the_codes_is_found_though_few_codes_are_in_it(int4):
    folder, tensors = int4
    tensors[LAYER.format(2) + "mlp.down_proj.weight_packed"][7] = 0
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    assert (codes_of(report), report.verdict) == ({"E-CODES-STUCK"}, "damaged")
    assert report.damage[0]["stuck_groups"] == 13


def test_a_hole_in_a_dense_weight(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_tensors, "PIECE_BYTES", 4096)
    folder = copy_model(DENSE, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][100:200] = 0
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    assert (codes_of(report), report.verdict) == ({"W-CKPT-HOLE"}, "suspicious")


def test_a_scale_with_a_flipped_bit_stands_out(int4):
    folder, tensors = int4
    scales = tensors[LAYER.format(2) + "self_attn.k_proj.weight_scale"]
    scales[1, 1] *= 65536
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    assert codes_of(report) == {"W-SCALE-OUTLIER"}
    assert report.verdict == "suspicious"


def test_padding_is_told_from_dead_groups(int4):
    """Zeros in whole rows and columns at the end, with any scale, are how padding looks."""
    folder, tensors = int4
    for module in ("gate_proj", "up_proj"):
        tensors[LAYER.format(0) + f"mlp.{module}.weight_packed"][-32:] = ZERO_WORD
        tensors[LAYER.format(0) + f"mlp.{module}.weight_scale"][-32:] = 1000
    tensors[LAYER.format(0) + "mlp.down_proj.weight_packed"][:, -4:] = ZERO_WORD
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    assert (report.verdict, codes_of(report)) == ("healthy", {"N-CODES-PADDING"})
    assert finding(report, "N-CODES-PADDING").numbers[LAYER.format(0) + "mlp.down_proj"] == 288
