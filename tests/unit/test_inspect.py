"""isobit inspect: each kind of damage is found, and healthy checkpoints of every format are not."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from isobit.shard.checkpoint import INDEX, open_checkpoint
from isobit.shard.formats import quantized_format
from isobit.shard.inspect import inspect_folder
from isobit.shard.inspect import tensors as inspect_tensors
from isobit.shard.inspect.codes import CodeMatrix, grouping
from isobit.shard.inspect.damage import SATURATED_ERROR, SATURATED_WARNING
from isobit.shard.inspect.findings import place
from isobit.shard.inspect.quantized import quantized_modules
from isobit.shard.inspect.scales import scale_stats
from isobit.shard.inspect.tensors import NumberCount
from isobit.shard.quantization import WeightScheme
from isobit.shard.safetensors_file import SliceReader
from isobit.shard.spec import read_spec
from safetensors.torch import load_file, save_file

from ..support import DENSE, INT4, copy_model, save_tensors

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = sorted(p.parent.name for p in GOLDEN.glob("*/model.safetensors"))
# What is truly odd about some of the golden checkpoints.
ODDITIES = {
    "awq-gptqmodel": {"W-CONFIG-FIELD"},
    "gptq-v1-asymmetric-nibbles": {"W-QUANT-WRAP", "W-CODES-SATURATED"},
    "gptq-v1-asymmetric-words": {"W-QUANT-WRAP"},
}
DEAD_WORD = torch.tensor(0x88888888 - (1 << 32), dtype=torch.int32)
LAYER = "model.layers.{}."


def codes_of(report, severity=None):
    return {f.code for f in report.findings if severity in (None, f.severity)}


def finding(report, code):
    found = [f for f in report.findings if f.code == code]
    assert len(found) == 1, [f.code for f in report.findings]
    return found[0]


@pytest.fixture
def int4(tmp_path):
    """A copy of the shipped int4 model and its tensors, to be damaged."""
    folder = copy_model(INT4, tmp_path / "model")
    return folder, load_file(folder / "model.safetensors")


@pytest.fixture
def gptq(tmp_path):
    """A copy of a golden GPTQ v1 checkpoint and its tensors."""
    folder = copy_model(GOLDEN / "gptq-v1", tmp_path / "model")
    return folder, load_file(folder / "model.safetensors")


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


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
    tensors[LAYER.format(2) + "mlp.down_proj.weight_packed"][7] = DEAD_WORD
    tensors[LAYER.format(3) + "self_attn.q_proj.weight_packed"][5, :4] = DEAD_WORD
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
        ("warning", "W-CKPT-EXTRA", "model.vision.weight"),
        ("warning", "W-CKPT-ZERO", name),
        ("warning", "W-SCALE-ZERO", LAYER.format(0) + "mlp.up_proj.weight_scale"),
        ("warning", "W-SCALE-SIGN", LAYER.format(0) + "mlp.up_proj.weight_scale"),
        ("warning", "W-CODES-DEAD", "3 places"),
        ("note", "N-CKPT-EXTRA", LAYER.format(0) + "self_attn.rotary_emb.inv_freq"),
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
    assert "isobit pad" in found[0].way_out


@pytest.mark.parametrize(
    ("field", "value", "true"),
    [("num_hidden_layers", 4, 5), ("num_hidden_layers", 6, 5), ("vocab_size", 1999, 2000)],
)
def test_other_edited_sizes_are_one_finding_each(tmp_path, field, value, true):
    folder = copy_model(DENSE, tmp_path / "model", layer_types=None, **{field: value})
    report = inspect_folder(folder)
    assert [f.where for f in report.findings] == [f"config.json: {field}"]
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


def test_overlapping_tensors_are_an_error(tmp_path):
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": fields, "b": {**fields, "data_offsets": [4, 12]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(12)
    (tmp_path / "model.safetensors").write_bytes(data)
    assert "a and b from byte" in finding(inspect_folder(tmp_path), "E-CKPT-OVERLAP").what


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
        tensors[LAYER.format(0) + f"mlp.{module}.weight_packed"][-32:] = DEAD_WORD
        tensors[LAYER.format(0) + f"mlp.{module}.weight_scale"][-32:] = 1000
    tensors[LAYER.format(0) + "mlp.down_proj.weight_packed"][:, -4:] = DEAD_WORD
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    assert (report.verdict, codes_of(report)) == ("healthy", {"N-CODES-PADDING"})
    assert finding(report, "N-CODES-PADDING").numbers[LAYER.format(0) + "mlp.down_proj"] == 288


# Labels


def test_v2_zero_points_under_a_v1_label_name_both(gptq):
    folder, tensors = gptq
    for name, tensor in tensors.items():
        if name.endswith("qzeros"):
            tensor[:] = DEAD_WORD
    save_tensors(folder, tensors)
    report = inspect_folder(folder)
    assert codes_of(report, "error") == {"E-QUANT-LABEL"}
    found = finding(report, "E-QUANT-LABEL")
    assert found.what.startswith("stored zero points are 8, as in a gptq_v2 file")
    assert 'checkpoint_format to "gptq_v2"' in found.way_out
    assert report.format["version"] == "v2"
    assert list(report.zero_points["gptq 4-bit symmetric"]) == ["8"]


def test_labels_indices_and_zero_points_in_one_run(gptq):
    folder, tensors = gptq
    layer = LAYER.format(0)
    tensors[layer + "mlp.down_proj.g_idx"][5] = 99
    shuffled = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    tensors[layer + "mlp.gate_proj.g_idx"] = tensors[layer + "mlp.gate_proj.g_idx"][shuffled]
    tensors[layer + "mlp.up_proj.g_idx"][:] = -1
    tensors[layer + "self_attn.v_proj.g_idx"][0] = 1
    del tensors[layer + "self_attn.k_proj.g_idx"]
    tensors[layer + "self_attn.q_proj.qzeros"][:] = DEAD_WORD
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
        f.way_out for f in report.findings if f.where.endswith("q_proj.qzeros")
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
        ({"architectures": ["MixtralForCausalLM"]}, "E-MODEL-ARCH", "suspicious"),
        ({"quantization_config": {"quant_method": "hqq"}}, "E-QUANT-METHOD", "suspicious"),
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


# Parts


@functools.cache
def random_codes(n, k):
    return torch.randint(0, 16, (n, k), generator=torch.Generator().manual_seed(n * k))


@pytest.mark.parametrize("packing", ["along k", "rows of k", "awq"])
@pytest.mark.parametrize("shuffled", [False, True], ids=["consecutive", "shuffled"])
@pytest.mark.parametrize("group_size", [4, 16, 24, -1])
def test_dead_groups_equal_a_plain_comparison(packing, shuffled, group_size):
    n, k = 16, 56
    scheme = WeightScheme(format="gptq", bits=4, group_size=group_size)
    groups = scheme.groups(k)
    generator = torch.Generator().manual_seed(1)
    index = torch.arange(k) // scheme.group_width(k)
    if shuffled:
        index = index[torch.randperm(k, generator=generator)]
    zeros = torch.randint(0, 16, (n, groups), generator=generator)
    dead = torch.rand((n, groups), generator=generator) < 0.3
    codes = torch.where(dead[:, index], zeros[:, index], random_codes(n, k))
    expected = torch.stack(
        [(codes == zeros[:, index])[:, index == g].all(1) for g in range(groups)], 1
    )
    shifts = torch.arange(0, 32, 4)
    if packing == "along k":
        words = (codes.view(n, -1, 8) << shifts).sum(2)
    elif packing == "rows of k":
        words = (codes.T.reshape(-1, 8, n) << shifts[:, None]).sum(1)
    else:
        order = codes.T.reshape(k, -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        words = (order << shifts).sum(2)
    matrix = CodeMatrix(words=words.int(), n=n, k=k, bits=4, packing=packing)
    found = grouping(k, scheme, index.int() if shuffled else None)
    assert torch.equal(matrix.dead_groups(found, zeros.int()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_numbers_that_are_not_finite_are_counted(dtype):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3).to(dtype)
    values[3], values[500:502], values[700] = torch.nan, -torch.inf, torch.inf
    count = NumberCount()
    count.add(values)
    assert (count.nan, count.infinite) == (1, 3)
    assert count.largest == float(values[values.isfinite()].abs().max())


def test_scales_are_counted_by_kind():
    scales = torch.full((10, 10), 0.01, dtype=torch.float16)
    scales[0, :4] = torch.tensor([0.0, -0.5, 1e-5, torch.nan])
    scales[1, 0] = torch.inf
    stats = scale_stats(scales)
    counts = (stats.zeros, stats.negative, stats.subnormal, stats.nan, stats.infinite)
    assert counts == (1, 1, 1, 1, 1)
    assert (stats.low, stats.high) == (-0.5, float(scales[5, 5]))
    assert scale_stats(torch.full((2, 2), torch.nan)).median is None


@pytest.mark.parametrize(
    ("shrink", "low", "high"),
    [
        (1.0, -1.0, 0.02),
        (1.5, SATURATED_WARNING - 0.03, SATURATED_WARNING + 0.01),
        (3.0, SATURATED_ERROR - 0.06, SATURATED_ERROR + 0.02),
    ],
)
def test_where_the_limits_of_saturation_come_from(shrink, low, high):
    """Gaussian weights, groups of 128, a step from the largest magnitude or one too small."""
    weights = torch.randn((20_000, 128), generator=torch.Generator().manual_seed(0))
    step = weights.abs().amax(1, keepdim=True) / 7.5 / shrink
    codes = (weights / step + 8).round().clamp(0, 15)
    beyond = ((codes == 0) | (codes == 15)).float().mean() - 2 / 128
    assert low < beyond < high


def test_places_name_layers_while_they_are_few():
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(10)]
    assert place(names[:1]) == "model.layers.0.mlp.up_proj"
    assert place(names[:3]) == "model.layers.*.mlp.up_proj (layers 0, 1, 2)"
    assert place(names) == "model.layers.*.mlp.up_proj (10 layers)"
