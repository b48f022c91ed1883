"""What loading refuses by name: values that do not fit, biases that would be lost, dead disks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isobit.errors import InputError
from isobit.launch.models import model_folder
from isobit.shard.checkpoint.checkpoint import open_checkpoint
from isobit.shard.checkpoint.safetensors_file import SliceReader
from isobit.shard.checkpoint.writer import FolderWriter
from isobit.shard.load.load import load_rank
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.plan import PlanSettings, make_plan

from ...support import DENSE, copy_model, save_tensors


def load(model, dtype: torch.dtype = torch.bfloat16) -> None:
    spec = read_spec(model)
    load_rank(open_checkpoint(model), spec, make_plan(spec, PlanSettings()), 0, dtype)


def changed(tmp_path, **tensors: torch.Tensor):
    """A copy of the dense model with some tensors replaced or added (names with __ for dots)."""
    model = copy_model(DENSE, tmp_path / "model")
    whole = load_file(DENSE / "model.safetensors")
    whole |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_tensors(model, whole)
    return model


def test_a_value_that_does_not_fit_float16(tmp_path):
    up = load_file(DENSE / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    up[7, 11] = 70144.0
    model = changed(tmp_path, model__layers__1__mlp__up_proj__weight=up)
    load(model)
    with pytest.raises(InputError) as error:
        load(model, torch.float16)
    assert error.value.code == "E-NUM-OVERFLOW"
    assert "model.layers.1.mlp.up_proj.weight: absmax 7.01e+04 > 65504" in error.value.message
    assert "--dtype bfloat16" in error.value.message


def test_a_bias_that_the_config_does_not_imply(tmp_path):
    zero = torch.zeros(288, dtype=torch.bfloat16)
    load(changed(tmp_path, model__layers__0__self_attn__o_proj__bias=zero))
    (tmp_path / "again").mkdir()
    model = changed(tmp_path / "again", model__layers__0__self_attn__o_proj__bias=zero + 5)
    with pytest.raises(InputError) as error:
        load(model)
    assert error.value.code == "E-CKPT-BIAS"
    assert "model.layers.0.self_attn.o_proj.bias is not zero" in error.value.message


def test_no_rows_at_all_of_a_wide_matrix(tmp_path):
    """Act-order on a rank that owns only padding."""
    wide = torch.zeros((4, 2048))
    save_tensors(tmp_path, {"wide": wide})
    with SliceReader() as reader:
        entry = open_checkpoint(tmp_path).entries["wide"]
        none = reader.read(entry, torch.tensor([], dtype=torch.int64), slice(0, 2048))
    assert none.shape == (0, 2048)


def test_a_file_that_vanished(tmp_path):
    save_tensors(tmp_path, {"a": torch.ones(3)})
    entry = open_checkpoint(tmp_path).entries["a"]
    (tmp_path / "model.safetensors").unlink()
    with SliceReader() as reader, pytest.raises(InputError) as error:
        reader.read(entry)
    assert error.value.code == "E-CKPT-MISSING"


def test_a_place_that_cannot_be_written():
    with pytest.raises(InputError) as error:
        FolderWriter(Path("/proc/isobit-out"), "note")
    assert error.value.code == "E-OUT-WRITE"


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 300, "a/" + "b" * 300])
def test_names_that_are_no_folder(name):
    with pytest.raises(InputError) as error:
        model_folder(name)
    assert error.value.code == "E-MODEL-MISSING"


def test_a_plan_of_a_hub_model_fetches_no_index(monkeypatch, tmp_path):
    """The index names files that a plan does not need and does not fetch."""
    asked = {}

    def snapshot_download(name, allow_patterns, ignore_patterns):
        asked.update(name=name, allow=allow_patterns, ignore=ignore_patterns)
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert model_folder("some-org/some-model", weights=False) == tmp_path
    assert "*.index.json" in asked["ignore"]
    assert "*.safetensors" in asked["ignore"]
