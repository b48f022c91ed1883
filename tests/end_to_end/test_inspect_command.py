"""`isobit inspect` as it is called: exit status, one JSON object, text for people."""

from __future__ import annotations

import hashlib
import json

import torch
from safetensors.torch import load_file

from ..support import INT4, copy_model, isobit, save_tensors


def test_a_healthy_model_as_json():
    result = isobit("inspect", str(INT4), "--sha256", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert set(report) == {
        "model", "verdict", "findings", "format", "files", "tensors", "scales", "zero_points",
        "g_idx", "damage", "throughput_mb_s",
    }  # fmt: skip
    assert (report["verdict"], report["findings"]) == ("healthy", [])
    digest = hashlib.sha256((INT4 / "model.safetensors").read_bytes()).hexdigest()
    assert report["files"][0]["sha256"] == digest
    assert report["format"]["schemes"][0]["modules"] == len(report["damage"]) == 35


def test_a_damaged_model_for_people(tmp_path):
    folder = copy_model(INT4, tmp_path / "model", intermediate_size=448)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale"][0, 0] = torch.nan
    tensors["model.[odd].weight"] = torch.ones(2)
    save_tensors(folder, tensors)
    result = isobit("inspect", str(folder), COLUMNS="100")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("damaged")
    assert "2 errors, 1 warning" in lines[0]
    assert "error E-CKPT-NAN  model.layers.0.mlp.up_proj.weight_scale" in lines
    assert "warning W-CKPT-EXTRA  model.[odd].weight" in lines
    assert max(map(len, lines[1:])) <= 100


def test_pickles_cannot_be_inspected(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    result = isobit("inspect", str(tmp_path), "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["code"] == "E-CKPT-FORMAT"
