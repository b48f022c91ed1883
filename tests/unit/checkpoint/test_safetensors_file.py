"""Reading safetensors by slice: equal to the safetensors package, byte for byte and no more."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from isobit.shard.checkpoint import safetensors_file
from isobit.shard.checkpoint.safetensors_file import TORCH_DTYPES, SliceReader, read_header

SHAPES = {"matrix": (5, 7), "vector": (9,), "cube": (2, 3, 4), "scalar": (), "none": (0, 3)}


def random_bits(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern, NaN and infinity among them; a bool is 0 or 1."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape).bool()
    count = torch.empty(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8).view(dtype).view(shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    def raw(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().view(-1).view(torch.uint8)

    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw(a), raw(b))


FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def every_dtype() -> Path:
    """One file, kept for the whole run, with a tensor of each shape in each dtype."""
    torch.manual_seed(3)
    path = Path(FOLDER.name) / "every.safetensors"
    tensors = {
        f"{name}.{shape}": random_bits(SHAPES[shape], dtype)
        for name, dtype in TORCH_DTYPES.items()
        for shape in SHAPES
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def reader():
    opened = SliceReader()
    yield opened
    opened.close()


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_whole_tensors_equal_the_package(dtype, reader):
    entries = {entry.name: entry for entry in read_header(every_dtype())}
    with safe_open(every_dtype(), "pt") as oracle:
        assert set(entries) == set(oracle.keys())
        for shape in SHAPES:
            name = f"{dtype}.{shape}"
            assert same_bits(reader.read(entries[name]), oracle.get_tensor(name)), name


def edges(size: int) -> st.SearchStrategy[slice]:
    ends = st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted)
    return ends.map(lambda pair: slice(*pair))


@settings(deadline=None, max_examples=200)
@given(dtype=st.sampled_from(list(TORCH_DTYPES)), rows=edges(5), columns=edges(7))
def test_slices_equal_the_package_and_only_their_bytes_are_read(dtype, rows, columns):
    reader = SliceReader()
    name = f"{dtype}.matrix"
    entry = next(entry for entry in read_header(every_dtype()) if entry.name == name)
    ours = reader.read(entry, rows, columns)
    reader.close()
    with safe_open(every_dtype(), "pt") as oracle:
        assert same_bits(ours, oracle.get_tensor(name)[rows, columns])
    assert reader.bytes_read == ours.numel() * entry.dtype.itemsize


def picks(size: int) -> st.SearchStrategy[slice | torch.Tensor]:
    """A slice, or some indices in any order, as act-order needs them."""
    indices = st.lists(st.integers(0, size - 1), min_size=1, unique=True).map(torch.tensor)
    return edges(size) | indices


@settings(deadline=None, max_examples=200)
@given(rows=picks(5), columns=picks(7), page_bytes=st.sampled_from([1, 4096]))
def test_scattered_rows_and_columns_equal_the_package(rows, columns, page_bytes):
    """Whether single rows are worth a read of their own, or not."""
    reader = SliceReader()
    entry = next(entry for entry in read_header(every_dtype()) if entry.name == "I16.matrix")
    with mock.patch.object(safetensors_file, "PAGE_BYTES", page_bytes):
        ours = reader.read(entry, rows, columns)
    reader.close()
    with safe_open(every_dtype(), "pt") as oracle:
        assert same_bits(ours, oracle.get_tensor("I16.matrix")[rows][:, columns])


@settings(deadline=None, max_examples=50)
@given(part=edges(9))
def test_ranges_of_a_vector_equal_the_package_and_only_their_bytes_are_read(part):
    reader = SliceReader()
    entry = next(entry for entry in read_header(every_dtype()) if entry.name == "I32.vector")
    ours = reader.read_range(entry, part.start, part.stop)
    reader.close()
    with safe_open(every_dtype(), "pt") as oracle:
        assert same_bits(ours, oracle.get_tensor("I32.vector")[part])
    assert reader.bytes_read == 4 * len(ours)


def test_bytes_add_up_over_reads(reader):
    entries = {entry.name: entry for entry in read_header(every_dtype())}
    reader.read(entries["F64.matrix"])
    reader.read(entries["BF16.matrix"], slice(1, 3), slice(0, 2))
    reader.read_range(entries["U8.vector"], 4, 9)
    assert reader.bytes_read == 5 * 7 * 8 + 2 * 2 * 2 + 5


def test_a_file_cut_after_its_header_was_read_is_named(tmp_path, reader, code_of):
    path = tmp_path / "shrinks.safetensors"
    save_file({"a": torch.ones(100)}, path)
    entry = read_header(path)[0]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert code_of(reader.read, entry) == "E-CKPT-TRUNCATED"


def test_metadata_is_not_a_tensor(tmp_path):
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"a note": "of no concern"})
    assert [entry.name for entry in read_header(path)] == ["a"]
