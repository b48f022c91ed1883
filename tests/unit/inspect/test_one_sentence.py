"""What generate refuses for reasons that lie in the folder, inspect refuses with the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from isobit.runtime.engine.preflight import prepare
from isobit.runtime.settings.engine import EngineSettings
from isobit.shard.inspect import inspect_folder

from ...support import DENSE, INT4, copy_model

UP = "model.layers.0.mlp.up_proj."


def settings(**changed: Any) -> dict[str, Any]:
    """The quantization settings of the example model, changed."""
    return {**json.loads((INT4 / "config.json").read_text())["quantization_config"], **changed}


def changed(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    every = {**load_file(path), **tensors}
    save_file({name: tensor for name, tensor in every.items() if tensor is not None}, path)


SCALES = UP + "weight_scale"
TENSORS = {
    "missing": ("E-CKPT-TENSOR", "damaged", {SCALES: None}),
    "another shape": (
        "E-CONFIG-SHAPE",
        "damaged",
        {SCALES: torch.ones(416, 2, dtype=torch.bfloat16)},
    ),
    "another dtype": (
        "E-CKPT-DTYPE",
        "damaged",
        {SCALES: torch.ones(416, 9, dtype=torch.int32)},
    ),
    "doubles": (
        "E-CKPT-DTYPE",
        "not-supported",
        {SCALES: torch.ones(416, 9, dtype=torch.float64)},
    ),
    "floats of 8 bits": (
        "E-CKPT-DTYPE",
        "not-supported",
        {SCALES: torch.ones(416, 9).to(torch.float8_e4m3fn)},
    ),
    "a bias": ("E-CKPT-BIAS", "damaged", {UP + "bias": torch.ones(416)}),
}
CONFIGS = {
    "no quantization": ("E-QUANT-LABEL", "damaged", {"quantization_config": None}),
    "layers left out": ("E-CONFIG-SHAPE", "damaged", {"num_hidden_layers": 4, "layer_types": None}),
    "another vocabulary": ("E-CONFIG-SHAPE", "damaged", {"vocab_size": 1999}),
    "another model": ("E-MODEL-ARCH", "not-supported", {"architectures": ["MambaForCausalLM"]}),
    "two methods": (
        "E-QUANT-SCHEME",
        "misused",
        {
            "quantization_config": {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "load_in_8bit": True,
            }
        },
    ),
    "a method misspelled": (
        "E-QUANT-METHOD",
        "misused",
        {"quantization_config": {"quant_method": "AWQ"}},
    ),
    "two models": (
        "E-MODEL-ARCH",
        "misused",
        {"architectures": ["Qwen2ForCausalLM", "LlamaForCausalLM"]},
    ),
    "another method": (
        "E-QUANT-METHOD",
        "not-supported",
        {"quantization_config": {"quant_method": "hqq"}},
    ),
}


def agreed(folder: Path, error_of: Any, code: str, kind: str) -> None:
    error = error_of(prepare, folder, EngineSettings())
    assert (error.code, error.kind) == (code, kind)
    report = inspect_folder(folder)
    assert report.verdict == kind
    first = next(each for each in report.findings if each.code == code)
    assert first.kind == kind
    assert first.what in error.message
    if kind != "damaged":
        assert "restore" not in (first.remedy + error.message).lower()


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(tmp_path, error_of, name):
    code, kind, tensors = TENSORS[name]
    folder = copy_model(INT4, tmp_path / "model")
    changed(folder, **tensors)
    agreed(folder, error_of, code, kind)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(tmp_path, error_of, name):
    code, kind, fields = CONFIGS[name]
    folder = copy_model(INT4, tmp_path / "model", **fields)
    if fields.get("quantization_config", 0) is None:
        config = json.loads((folder / "config.json").read_text())
        del config["quantization_config"]
        (folder / "config.json").write_text(json.dumps(config))
    agreed(folder, error_of, code, kind)


@pytest.mark.parametrize("file", ["config.json", "quantize_config.json"])
def test_dense_weights_under_a_label(file, tmp_path, error_of):
    label = settings()
    inside = label if file == "config.json" else None
    folder = copy_model(DENSE, tmp_path / "model", quantization_config=inside)
    if inside is None:
        (folder / file).write_text(json.dumps(label))
    agreed(folder, error_of, "E-QUANT-LABEL", "misused")


def test_group_sizes_that_no_plan_cuts(tmp_path, error_of):
    """Right files that isobit cannot cut: not supported, and inspect says so too."""
    down = {"targets": ["re:.*layers.0.mlp.down_proj"], "weights": None}
    config = settings()
    group = config["config_groups"]["group_0"]
    odd = {**group, **down, "weights": {**group["weights"], "group_size": 26}}
    config["config_groups"] = {"group_1": odd, "group_0": group}
    folder = copy_model(INT4, tmp_path / "model", quantization_config=config)
    error = error_of(prepare, folder, EngineSettings())
    assert (error.code, error.kind) == ("E-PLAN-GROUP", "not-supported")
    found = next(each for each in inspect_folder(folder).findings if each.code == "E-PLAN-GROUP")
    assert (found.kind, found.what) == ("not-supported", error.message)
