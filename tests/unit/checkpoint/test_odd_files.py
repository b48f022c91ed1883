"""Folders with pipes, links, endless names and stale indexes: coded errors, nothing hangs."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from isobit.errors import InputError
from isobit.shard.checkpoint.checkpoint import INDEX, SINGLE, open_checkpoint
from isobit.shard.inspect import inspect_folder

from ...support import INT4, copy_model
from ..inspect.inspection import codes_of, finding


@pytest.fixture
def folder(tmp_path) -> Path:
    return copy_model(INT4, tmp_path / "model")


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", [SINGLE, "a.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "folder"])
def test_what_is_no_regular_file_is_not_waited_for(folder, name, kind, code_of):
    (folder / SINGLE).unlink()
    path = folder / name
    {
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }[kind]()
    assert code_of(open_checkpoint, folder) == "E-CKPT-MISSING"
    report = inspect_folder(folder)
    assert "E-CKPT-MISSING" in codes_of(report, "error")


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("x" * 300, "E-CKPT-MISSING"),
        ("\ud800.safetensors", "E-CKPT-MISSING"),
        ("a\0b", "E-CKPT-MISSING"),
        ("../x.safetensors", "E-CKPT-INDEX"),
        ("/etc/passwd", "E-CKPT-INDEX"),
        ("", "E-CKPT-INDEX"),
        ("..", "E-CKPT-INDEX"),
        (5, "E-CKPT-INDEX"),
    ],
)
def test_names_of_files_in_an_index(folder, file, code, error_of):
    (folder / SINGLE).rename(folder / "other.safetensors")
    write_index(folder, {"model.norm.weight": file})
    error = error_of(open_checkpoint, folder)
    assert (error.code, error.kind) == (code, "damaged")


def test_an_old_index_beside_a_single_file_that_has_everything(folder, caplog):
    names = load_file(folder / SINGLE)
    write_index(folder, dict.fromkeys(names, "model-00001-of-00002.safetensors"))
    assert set(open_checkpoint(folder).entries) == set(names)
    assert "model-00001-of-00002.safetensors" in caplog.text
    report = inspect_folder(folder)
    assert (report.verdict, codes_of(report, "warning")) == ("suspicious", {"W-CKPT-INDEX"})


def test_an_old_index_that_names_what_the_single_file_lacks(folder, caplog):
    write_index(folder, {"old.weight": "model-00001-of-00002.safetensors"})
    open_checkpoint(folder)
    assert "Only the index names old.weight" in caplog.text


def test_an_index_that_mixes_up_its_files(folder):
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    first, second = list(tensors)[::2], list(tensors)[1::2]
    save_file({n: tensors[n] for n in first}, folder / "a.safetensors")
    save_file({n: tensors[n] for n in second}, folder / "b.safetensors")
    right = {**dict.fromkeys(first, "a.safetensors"), **dict.fromkeys(second, "b.safetensors")}
    write_index(folder, right | {second[0]: "a.safetensors"})
    assert open_checkpoint(folder).entries[second[0]].file.name == "b.safetensors"
    assert second[0] in finding(inspect_folder(folder), "W-CKPT-INDEX").what


def test_a_layer_far_away_costs_no_memory(folder):
    tensors = load_file(folder / SINGLE)
    save_file(
        tensors | {f"model.layers.{n}.mlp.x": torch.ones(1) for n in ("100000", "9" * 5000)},
        folder / SINGLE,
    )
    tracemalloc.start()
    report = inspect_folder(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.verdict == "suspicious"
    assert len(report.tensors["unexpected"]) == 2
    assert peak < 30 << 20


@pytest.mark.parametrize("change", ["hole", "tail", "metadata"])
def test_what_the_library_refuses_no_command_takes(folder, change):
    path = folder / SINGLE
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if change == "hole":
        for name, fields in header.items():
            if name != "__metadata__":
                fields["data_offsets"] = [each + 64 for each in fields["data_offsets"]]
        body = bytes(64) + body
    elif change == "tail":
        body += bytes(14 << 10)
    else:
        header["__metadata__"] = 5
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder)
    assert caught.value.kind == "damaged"
    report = inspect_folder(folder)
    assert report.verdict == "damaged"
    assert caught.value.code in codes_of(report, "error")
