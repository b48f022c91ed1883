"""A model folder's files: which holds which tensor, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from isobit.shard.checkpoint.checkpoint import INDEX, has_weights, open_checkpoint
from isobit.shard.checkpoint.safetensors_file import SliceReader

A, B, C = torch.arange(6.0).view(2, 3), torch.ones(4), torch.zeros(5)


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path):
    save_file({"a": A, "b": B}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": C}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(
        tmp_path,
        {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    )
    return tmp_path


def test_a_single_file(tmp_path):
    save_file({"a": A, "b": B}, tmp_path / "model.safetensors")
    assert {n: e.shape for n, e in open_checkpoint(tmp_path).entries.items()} == {
        "a": (2, 3),
        "b": (4,),
    }


def test_a_single_file_hides_others_beside_it(tmp_path):
    """Some repositories keep the original weights beside the converted ones."""
    save_file({"a": A}, tmp_path / "model.safetensors")
    save_file({"z": A}, tmp_path / "consolidated.safetensors")
    assert list(open_checkpoint(tmp_path).entries) == ["a"]


def test_files_of_any_name_without_an_index(tmp_path):
    save_file({"a": A}, tmp_path / "one.safetensors")
    save_file({"b": B}, tmp_path / "two.safetensors")
    assert set(open_checkpoint(tmp_path).entries) == {"a", "b"}


def test_sharded_tensors_are_read_from_their_own_files(sharded):
    entries, reader = open_checkpoint(sharded).entries, SliceReader()
    for name, tensor in (("a", A), ("b", B), ("c", C)):
        assert torch.equal(reader.read(entries[name]), tensor)
    reader.close()


def test_a_tensor_in_two_files_is_taken_from_the_one_that_the_index_names(sharded):
    save_file({"c": C, "a": A + 1}, sharded / "model-00002-of-00002.safetensors")
    entry = open_checkpoint(sharded).entries["a"]
    assert entry.file.name == "model-00001-of-00002.safetensors"


def test_an_absent_shard_is_named(sharded, error_of):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    error = error_of(open_checkpoint, sharded)
    assert error.code == "E-CKPT-MISSING"
    assert "model-00002-of-00002.safetensors" in error.message
    assert "model-00001-of-00002.safetensors" not in error.message


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_may_not_name_files_elsewhere(sharded, file, error_of):
    write_index(sharded, {"a": "model-00001-of-00002.safetensors", "b": file})
    error = error_of(open_checkpoint, sharded)
    assert error.code == "E-CKPT-INDEX"
    assert file in error.message


def test_tensors_that_are_not_where_the_index_says(sharded, error_of):
    write_index(
        sharded,
        {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
            "ghost": "model-00001-of-00002.safetensors",
        },
    )
    error = error_of(open_checkpoint, sharded)
    assert error.code == "E-CKPT-INDEX"
    assert "b (in" not in error.message
    assert "ghost (in model-00001-of-00002.safetensors)" in error.message


@pytest.mark.parametrize("weight_map", [{}, [], None, "model.safetensors"])
def test_an_index_without_a_map(tmp_path, weight_map, code_of):
    write_index(tmp_path, weight_map)
    assert code_of(open_checkpoint, tmp_path) == "E-CKPT-INDEX"


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000], ids=["half", "list", "deep"])
def test_an_index_that_is_no_json_object(tmp_path, text, code_of):
    (tmp_path / INDEX).write_text(text)
    assert code_of(open_checkpoint, tmp_path) == "E-MODEL-JSON"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "x.ckpt", "w.pkl", "m.gguf"]
)
def test_other_formats_are_refused_by_name_and_never_opened(tmp_path, name, error_of):
    path = tmp_path / name
    path.write_bytes(b"not to be opened")
    path.chmod(0)
    error = error_of(open_checkpoint, tmp_path)
    assert error.code == "E-CKPT-FORMAT"
    assert name in error.message


def test_pickles_beside_safetensors_do_no_harm(tmp_path):
    save_file({"a": A}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be opened")
    assert list(open_checkpoint(tmp_path).entries) == ["a"]


def test_a_folder_without_weights(tmp_path, code_of):
    (tmp_path / "config.json").write_text("{}")
    assert not has_weights(tmp_path)
    assert code_of(open_checkpoint, tmp_path) == "E-CKPT-MISSING"


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, "pytorch_model.bin"])
def test_anything_that_claims_to_be_weights_counts(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert has_weights(tmp_path)


def test_all_missing_tensors_are_listed(tmp_path, error_of):
    save_file({"a": A}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.require(["a"])
    error = error_of(checkpoint.require, ["a", "x", "y"])
    assert error.code == "E-CKPT-TENSOR"
    assert error.message.splitlines()[1:] == ["  x", "  y"]
