"""Writing checkpoints: the safetensors package reads back what was written, and nothing stays."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from isobit.shard.checkpoint import writer as writing
from isobit.shard.checkpoint.checkpoint import INDEX
from isobit.shard.checkpoint.safetensors_file import TORCH_DTYPES
from isobit.shard.checkpoint.safetensors_writer import SafetensorsWriter
from isobit.shard.checkpoint.writer import FolderWriter

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(list(TORCH_DTYPES.values())), SHAPES),
    min_size=1,
    max_size=6,
)


def filled(dtype: torch.dtype, shape: tuple[int, ...], start: int) -> torch.Tensor:
    count = torch.empty(shape).numel()
    return (torch.arange(start, start + count) % 2 if dtype == torch.bool else
            torch.arange(start, start + count)).to(dtype).view(shape)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(shapes=TENSORS)
def test_the_package_reads_what_was_written(shapes):
    tensors = {name: filled(*shape, start) for start, (name, shape) in enumerate(shapes.items())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        file = SafetensorsWriter(path, {"note": "é"})
        for name, tensor in tensors.items():
            file.add(name, tensor)
        file.close()
        read = load_file(path)
        with safe_open(path, "pt") as opened:
            assert opened.metadata() == {"note": "é"}
        assert [each.name for each in Path(folder).iterdir()] == [path.name]
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_strided_tensor_is_written_as_it_reads(tmp_path):
    file = SafetensorsWriter(tmp_path / "f", {})
    tensor = torch.arange(12.0).view(3, 4).T
    file.add("t", tensor)
    file.close()
    assert torch.equal(load_file(tmp_path / "f")["t"], tensor)


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "LICENSE"):
        (folder / name).write_text(f"source {name}")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / INDEX).write_text("stale")
    return folder


def write(source, tensors, fail=False):
    with FolderWriter(source.parent / "out", "note") as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        if fail:
            raise KeyboardInterrupt
        writer.finish({"key": "value"}, source)
    return source.parent / "out"


def test_a_folder_is_split_into_files_that_an_index_names(source, monkeypatch):
    monkeypatch.setattr(writing, "FILE_BYTES", 100)
    tensors = {name: torch.full((20,), float(i)) for i, name in enumerate("abc")}
    out = write(source, tensors)
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == 240
    assert len(set(index["weight_map"].values())) == 3
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(out / file)[name], tensors[name])


def test_tokenizer_files_are_carried_over_and_code_is_not(source):
    out = write(source, {"a": torch.ones(1)})
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "chat_template.jinja",
        "LICENSE",
    }
    assert json.loads((out / "config.json").read_text()) == {"key": "value"}


def test_a_writer_that_is_left_early_leaves_nothing(source):
    with pytest.raises(KeyboardInterrupt):
        write(source, {"a": torch.ones(1)}, fail=True)
    assert list(source.parent.iterdir()) == [source]


def test_a_folder_that_appears_meanwhile_is_not_replaced(source, code_of):
    def race():
        with FolderWriter(source.parent / "out", "note") as writer:
            writer.add("a", torch.ones(1))
            (source.parent / "out").mkdir()
            (source.parent / "out" / "theirs").touch()
            writer.finish({}, source)

    assert code_of(race) == "E-OUT-EXISTS"
    assert [path.name for path in (source.parent / "out").iterdir()] == ["theirs"]
    assert {path.name for path in source.parent.iterdir()} == {"source", "out"}
