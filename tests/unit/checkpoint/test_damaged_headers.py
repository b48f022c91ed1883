"""Damaged safetensors files: named by code, every offender listed, no memory taken for them."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from isobit.shard.checkpoint.safetensors_file import read_header
from isobit.shard.checkpoint.safetensors_header import MOST_HEADER_BYTES

GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path, header, data=b"", claimed=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if claimed is None else claimed
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "damaged.safetensors"


def test_the_undamaged_file_of_these_tests_is_accepted(path):
    entry = read_header(write(path, {"t": GOOD}, bytes(24)))[0]
    assert (entry.dtype, entry.shape) == (torch.float32, (2, 3))


@pytest.mark.parametrize("kept", [0, 7])
def test_a_file_without_room_for_a_length(path, kept, code_of):
    path.write_bytes(bytes(kept))
    assert code_of(read_header, path) == "E-CKPT-TRUNCATED"


@pytest.mark.parametrize("claimed", [1 << 62, (1 << 64) - 1, 200])
def test_a_header_longer_than_the_file(path, claimed, error_of):
    write(path, {"t": GOOD}, claimed=claimed)
    error = error_of(read_header, path)
    assert error.code == "E-CKPT-TRUNCATED"
    assert str(8 + claimed) in error.message


def test_a_header_one_byte_longer_than_the_file(path, code_of):
    text = json.dumps({"__metadata__": {}}).encode()
    assert read_header(write(path, text)) == []
    assert code_of(read_header, write(path, text, claimed=len(text) + 1)) == "E-CKPT-TRUNCATED"


def test_a_truncated_file_lists_the_tensors_beyond_the_end(path, error_of):
    save_file({"first": torch.ones(4), "second": torch.ones(400), "third": torch.ones(400)}, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1601)
    error = error_of(read_header, path)
    assert error.code == "E-CKPT-TRUNCATED"
    assert "second" in error.message
    assert "third" in error.message
    assert "first" not in error.message


def test_data_offsets_past_the_end(path, error_of):
    error = error_of(read_header, write(path, {"t": GOOD}, bytes(23)))
    assert error.code == "E-CKPT-TRUNCATED"


@pytest.mark.parametrize(
    "fields",
    [
        {**GOOD, "data_offsets": [-24, 0]},
        {**GOOD, "data_offsets": [24, 0]},
        {**GOOD, "data_offsets": [0, 23]},
        {**GOOD, "data_offsets": [0.0, 24.0]},
        {**GOOD, "data_offsets": [False, 24]},
        {**GOOD, "data_offsets": [0, 12, 24]},
        {**GOOD, "data_offsets": 24},
        {**GOOD, "shape": [2, -3]},
        {**GOOD, "shape": [2, 3.0]},
        {**GOOD, "shape": "23"},
        {**GOOD, "shape": [1 << 62, 1 << 62]},
        {**GOOD, "dtype": "F8_E4M3"},
        {**GOOD, "dtype": ["F32"]},
        {**GOOD, "dtype": None},
        {"dtype": "F32", "shape": [2, 3]},
        [0, 24],
        None,
    ],
    ids=lambda fields: json.dumps(fields)[:60],
)
def test_fields_that_describe_no_tensor(path, fields, error_of):
    error = error_of(read_header, write(path, {"odd.weight": fields}, bytes(24)))
    assert error.code == "E-CKPT-HEADER"
    assert "odd.weight" in error.message


def test_every_bad_tensor_is_listed_at_once(path, error_of):
    bad = {**GOOD, "dtype": "I4"}
    message = error_of(read_header, write(path, {"a": bad, "b": GOOD, "c": bad}, bytes(24))).message
    assert "a: dtype 'I4'" in message
    assert "c: dtype 'I4'" in message
    assert "b: " not in message


@pytest.mark.parametrize(
    "text",
    [b"not json", b"\xff\xfe\x00", b"[]", b"3", b"", b'{"t": ', b"[" * 200_000],
    ids=["words", "bytes", "list", "number", "empty", "half", "deep"],
)
def test_a_header_that_is_no_json_object(path, text, code_of):
    assert code_of(read_header, write(path, text, bytes(24))) == "E-CKPT-HEADER"


def test_a_huge_header_is_refused_unread(path, code_of):
    """The file is as long as it says (with holes), so only the limit stands in the way."""
    write(path, b"{", claimed=MOST_HEADER_BYTES + 1)
    with path.open("r+b") as file:
        file.truncate(MOST_HEADER_BYTES + 100)
    tracemalloc.start()
    code = code_of(read_header, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == "E-CKPT-HEADER"
    assert peak < 1 << 20


@pytest.mark.parametrize("shape", [[1 << 40], [1 << 20, 1 << 20]])
def test_a_huge_tensor_is_refused_unread(path, shape, code_of):
    fields = {"dtype": "U8", "shape": shape, "data_offsets": [0, 1 << 40]}
    tracemalloc.start()
    code = code_of(read_header, write(path, {"t": fields}, bytes(8)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == "E-CKPT-TRUNCATED"
    assert peak < 1 << 20


def test_a_missing_file_and_a_folder(path, tmp_path, code_of):
    assert code_of(read_header, path) == "E-CKPT-MISSING"
    assert code_of(read_header, tmp_path) == "E-CKPT-MISSING"
