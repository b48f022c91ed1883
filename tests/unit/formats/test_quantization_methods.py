"""Quantization methods and labels as people have them: read alike, or refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from isobit.errors import DamagedError, InputError, NotSupportedError
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.load.load import load_rank
from isobit.shard.load.validate import check_checkpoint
from isobit.shard.model.spec import read_spec, spec_from_config
from isobit.shard.plan.plan import PlanSettings, make_plan

from ...support import DENSE, GOLDEN, all_logits, copy_model, save_tensors
from ..configs import config, pack_quantized

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AUTO = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "data_type": "int",
    "block_name_to_quantize": "model.layers",
}
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"


def schemes(settings):
    found = spec_from_config(config(quantization_config=settings), None).quantization
    assert found is not None
    return found.scheme


def relabelled(folder, settings):
    """Give a golden folder another quantization_config; `settings` has that of before."""
    text, companion = (folder / name for name in ("config.json", "quantize_config.json"))
    fields = json.loads(text.read_text())
    before = fields.get("quantization_config") or json.loads(companion.read_text())
    companion.unlink(missing_ok=True)
    fields["quantization_config"] = settings(before)
    text.write_text(json.dumps(fields))


def auto_round(packing, **more):
    def settings(old):
        size = old.get("group_size", old.get("q_group_size"))
        sym = old.get("sym", not old.get("zero_point", False))
        return {**AUTO, "packing_format": packing, "group_size": size, "sym": sym, **more}

    return settings


@pytest.mark.parametrize(
    ("case", "packing"),
    [
        ("gptq-v1", "auto_round:auto_gptq"),
        ("gptq-v1", "auto_round:gptq"),
        ("gptq-v2", "auto_round:gptqmodel"),
        ("gptq-v2", "auto_round"),
        ("gptq-v2-asymmetric", "auto_round"),
        ("gptq-v1-asymmetric-nibbles", "auto_round:auto_gptq"),
        ("awq", "auto_round:auto_awq"),
    ],
)
def test_autoround_labels_are_gptq_and_awq_tensors(case, packing, tmp_path):
    """Logits are those of the packages that wrote the tensors, see tests/golden/README.md."""
    folder = copy_model(GOLDEN / case, tmp_path / "model")
    relabelled(folder, auto_round(packing))
    expected = load_file(folder / "expected.safetensors")
    ours = all_logits(folder, expected["ids"].tolist(), "float32")
    assert (ours - expected["logits"]).abs().max() < 2e-5 * expected["logits"].abs().max()


def test_the_wrong_zero_points_under_an_autoround_label_are_named(tmp_path, code_of):
    folder = copy_model(GOLDEN / "gptq-v1", tmp_path / "model")
    relabelled(folder, auto_round("auto_round:gptqmodel"))
    assert code_of(all_logits, folder, [1, 2], "float32") == "E-QUANT-LABEL"


def test_extra_config_changes_a_module_by_name_and_then_by_pattern():
    scheme = schemes(
        {
            **AUTO,
            "quant_method": "intel/auto-round",
            "extra_config": {
                UP: {"bits": 16, "data_type": "float"},
                ".*down_proj": {"bits": 8, "group_size": 64},
                DOWN: {"group_size": -1},
                "lm_head": {"bits": 8},
            },
        }
    )
    assert scheme(UP) is None
    found = {name: (s.bits, s.group_size) for name in (DOWN, DOWN.replace("1", "0"), "lm_head")
             if (s := scheme(name))}  # fmt: skip
    assert found == {DOWN: (4, -1), DOWN.replace("1", "0"): (8, 64), "lm_head": (8, 32)}
    assert schemes(AUTO)("lm_head") is None
    assert schemes({**AUTO, "block_name_to_quantize": ["model.layers.1"]})(UP) is None


@pytest.mark.parametrize("nested", [True, False])
def test_modules_in_block_to_quantize_leave_the_rest_dense(nested, tmp_path):
    """optimum and transformers convert a module whose name ends like one of the list, no other."""
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]
    listed = [names[:3], names[3:]] if nested else names
    scheme = schemes({**GPTQ, "modules_in_block_to_quantize": listed})
    assert scheme(UP) is None
    assert scheme("lm_head") is None
    assert scheme(DOWN) is not None
    folder = copy_model(GOLDEN / "gptq-v1", tmp_path / "model")
    expected, tensors = (
        load_file(folder / "expected.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    for end in ("self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj"):
        name = f"model.layers.0.{end}"
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors.pop(f"{name}.{part}", None)
        tensors[f"{name}.weight"] = expected[f"{name}.weight"]
    save_tensors(folder, tensors)
    relabelled(folder, lambda old: {**old, "modules_in_block_to_quantize": listed})
    ours = all_logits(folder, expected["ids"].tolist(), "float32")
    assert (ours - expected["logits"]).abs().max() < 2e-5 * expected["logits"].abs().max()


FLOAT = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
INT4 = pack_quantized()["config_groups"]["group_0"]
LOCAL = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "dynamic": "local"}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        *(({"quant_method": m}, m) for m in ("hqq", "aqlm", "eetq", "quanto", "torchao", "gguf")),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "fp8 e4m3"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt NVFP4"),
        ({**pack_quantized(), "format": "nvfp4-pack-quantized"}, "NVFP4"),
        ({**pack_quantized(), "format": "float-quantized"}, "FP8"),
        ({**pack_quantized(), "config_groups": {"g": FLOAT}}, "FP8"),
        (
            {**pack_quantized(), "config_groups": {"g": {**INT4, "input_activations": LOCAL}}},
            "NVFP4",
        ),
        ({**AUTO, "packing_format": "auto_round:llm_compressor"}, "auto_round:llm_compressor"),
        ({**AUTO, "data_type": "mx_fp"}, "mx_fp"),
    ],
    ids=str,
)
def test_a_format_that_is_not_read_is_named_in_one_line(settings, name, error_of):
    error = error_of(spec_from_config, config(quantization_config=settings), None)
    assert (type(error), error.code) == (NotSupportedError, "E-QUANT-METHOD")
    assert name in error.message
    assert "\n" not in error.message


def test_bitsandbytes_fp4_has_a_way_out(error_of):
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
    error = error_of(spec_from_config, config(quantization_config=settings), None)
    assert isinstance(error, NotSupportedError)
    assert 'bnb_4bit_quant_type="nf4"' in error.message


@pytest.mark.parametrize(
    ("described", "name"),
    [
        ({"quant_algo": "FP8"}, "modelopt FP8"),
        ({"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, "modelopt NVFP4 with FP8"),
    ],
)
def test_what_modelopt_describes_beside_config_is_named(described, name, tmp_path, error_of):
    folder = copy_model(DENSE, tmp_path / "model")
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": described}))
    error = error_of(read_spec, folder)
    assert (type(error), error.code) == (NotSupportedError, "E-QUANT-METHOD")
    assert f"'{name}'" in error.message


def test_a_kv_cache_that_modelopt_describes_says_nothing_of_weights(tmp_path, caplog):
    folder = copy_model(DENSE, tmp_path / "model")
    described = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": described}))
    assert read_spec(folder) == read_spec(DENSE)
    assert "kv_cache_quant_algo 'FP8' is ignored" in caplog.text


@pytest.mark.parametrize(
    ("name", "spelled"),
    [("AWQ", "awq"), ("GPTQ", "gptq"), ("auto_round", "auto-round"), ("BitsAndBytes",) * 2],
)
def test_a_method_that_is_misspelled_is_told_how_it_is_spelled(name, spelled, error_of):
    error = error_of(spec_from_config, config(quantization_config={"quant_method": name}), None)
    assert (type(error), error.code) == (InputError, "E-QUANT-METHOD")
    assert f"quant_method {name!r} is spelled {spelled.lower()!r}" in error.message


def test_bitsandbytes_is_of_4_bits_or_of_8(error_of):
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True}
    error = error_of(spec_from_config, config(quantization_config=settings), None)
    assert (type(error), error.code) == (InputError, "E-QUANT-SCHEME")
    assert "load_in_4bit and load_in_8bit are both true" in error.message


def test_an_empty_quantize_config_says_nothing(tmp_path):
    folder = copy_model(DENSE, tmp_path / "model")
    (folder / "quantize_config.json").write_text("{}")
    assert read_spec(folder) == read_spec(DENSE)


@pytest.mark.parametrize("file", ["config.json", "quantize_config.json"])
@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes"])
def test_dense_weights_under_a_label_are_told_to_lose_the_label(file, method, tmp_path, error_of):
    """A model that was dequantized, or trained further, and kept the settings of before."""
    packed = pack_quantized() if method == "compressed-tensors" else GPTQ
    settings = {**packed, "load_in_8bit": True, "quant_method": method}
    inside = settings if file == "config.json" else None
    folder = copy_model(DENSE, tmp_path / "model", quantization_config=inside)
    if inside is None:
        (folder / file).write_text(json.dumps(settings))
    error = error_of(check_checkpoint, open_checkpoint(folder), read_spec(folder))
    assert (type(error), error.code) == (InputError, "E-QUANT-LABEL")
    assert (
        f"{file} says {method}, but all 35 weights that it would be for are dense" in error.message
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quantization_config": {}}, "quantization_config is {}, which names no method"),
        ({"text_config": {"quantization_config": GPTQ}}, "stands in text_config"),
        ({"quantization_config": {"bits": 4}}, "'(none named)'"),
    ],
)
def test_settings_that_say_nothing_are_refused(fields, words, error_of):
    assert words in error_of(spec_from_config, config(**fields), None).message


def test_two_files_that_disagree_are_refused(tmp_path, error_of):
    folder = copy_model(GOLDEN / "gptq-v1", tmp_path / "model")
    (folder / "quantize_config.json").write_text(json.dumps({**GPTQ, "bits": 8}))
    error = error_of(read_spec, folder)
    assert (type(error), error.code) == (InputError, "E-QUANT-LABEL")
    assert "bits is 4 in config.json and 8 in quantize_config.json" in error.message


@pytest.mark.parametrize("case", ["gptq-v1", "awq", "ct-int4", "ct-w8a8-static", "bnb-int8"])
def test_quantized_tensors_without_a_label_are_told_in_one_sentence(case, tmp_path, error_of):
    folder = copy_model(GOLDEN / case, tmp_path / "model", quantization_config=None)
    error = error_of(check_checkpoint, open_checkpoint(folder), read_spec(folder))
    assert (type(error), error.code) == (DamagedError, "E-QUANT-LABEL")
    assert "config.json says no quantization, but " in error.message


def test_zero_points_beside_a_symmetric_weight_are_an_error_unless_all_are_the_middle(
    tmp_path, error_of
):
    folder = copy_model(GOLDEN / "ct-int4", tmp_path / "model")
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.0.mlp.down_proj"
    groups = tensors[f"{name}.weight_scale"].shape[1]
    rows = -(-tensors[f"{name}.weight_packed"].shape[0] // 8)
    middle = torch.full((rows, groups), 0x88888888 - (1 << 32), dtype=torch.int32)
    tensors[f"{name}.weight_zero_point"] = middle
    save_tensors(folder, tensors)
    ids = load_file(folder / "expected.safetensors")["ids"].tolist()
    same = all_logits(folder, ids, "float32")
    assert torch.equal(same, all_logits(GOLDEN / "ct-int4", ids, "float32"))
    middle[0, 0] = 0x88888887 - (1 << 32)
    save_tensors(folder, tensors)
    spec = read_spec(folder)
    plan = make_plan(spec, PlanSettings(degree=1), None)
    error = error_of(load_rank, open_checkpoint(folder), spec, plan, 0, torch.float32)
    assert (type(error).__name__, error.code) == ("DamagedError", "E-QUANT-ZEROS")
    assert "stored zero points are 7, 8 instead of 8" in error.message


NUMBERS = [0, -1, -2, 1 << 64, -(1 << 64), 10**300, True, 4.0, 1e308, float("inf"), "4", None, [4]]


@pytest.mark.parametrize("value", NUMBERS, ids=str)
def test_numbers_beyond_sense_are_refused_together(value, error_of):
    for base, ints in ((GPTQ, ("bits", "group_size")), (AUTO, ("bits", "group_size"))):
        wrong = [key for key in ints if not (key == "group_size" and value == -1)]
        error = error_of(
            spec_from_config,
            config(quantization_config={**base, **dict.fromkeys(ints, value)}),
            None,
        )
        assert isinstance(error, DamagedError)
        for key in wrong:
            assert f"{key} is " in error.message
        assert len(error.message) < 400
    if value is not None:
        settings = pack_quantized(num_bits=value)
        error = error_of(spec_from_config, config(quantization_config=settings), None)
        assert f"num_bits is {str(value)[:10]}" in error.message.replace("'", "")


def test_depth_and_counts_are_bounded(error_of):
    deep: dict = {}
    for _ in range(40):
        deep = {"x": deep}
    cases = {
        "nested deeper than 16 levels": {**GPTQ, "meta": deep},
        "2000 patterns, supported are 1024": {
            **GPTQ,
            "dynamic": {f"-:a{n}": {} for n in range(2000)},
        },
        "300 config_groups, supported are 256": {
            **pack_quantized(),
            "config_groups": {str(n): {"targets": ["Linear"]} for n in range(300)},
        },
    }
    for words, settings in cases.items():
        assert (
            words in error_of(spec_from_config, config(quantization_config=settings), None).message
        )


def test_dynamic_with_a_lookahead_says_how_to_write_it(error_of):
    settings = {**GPTQ, "dynamic": {r"-:^(?!.*down).*$": {}}}
    error = error_of(spec_from_config, config(quantization_config=settings), None)
    assert (type(error), error.code) == (NotSupportedError, "E-QUANT-PATTERN")
    assert "put one for the exceptions in front" in error.message
