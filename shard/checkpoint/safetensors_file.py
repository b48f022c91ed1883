"""Reading safetensors files by slice, with every size checked before memory is taken."""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from isobit.errors import DamagedError, InputError, NotSupportedError

from .features import Features, bounds
from .safetensors_header import (
    described,
    element_count,
    layout_errors,
    listed,
    open_regular,
    read_fields,
)

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
SUB_BYTE = ("F4", "F6_E2M3", "F6_E3M2")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor as its header describes it. `begin` counts bytes from the start of the file."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


PAGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header of a file says. `beyond` are those of `entries` whose data the file lacks.

    `errors` holds all that is wrong, first what a loader should raise.
    """

    entries: list[TensorEntry]
    beyond: list[TensorEntry]
    errors: list[InputError]


def read_header(path: Path) -> list[TensorEntry]:
    """Read and check the header of a safetensors file.

    Raises InputError E-CKPT-MISSING; DamagedError E-CKPT-TRUNCATED (the data end before the header
    says so), E-CKPT-OVERLAP, E-CKPT-LAYOUT (bytes that belong to no tensor) or E-CKPT-HEADER
    (anything else that is wrong with the header, all tensors listed at once); NotSupportedError
    E-CKPT-HEADER for dtypes that torch does not have.
    """
    header = scan_header(path)
    if header.errors:
        raise header.errors[0]
    return header.entries


def scan_header(path: Path) -> Header:
    """Read a header as read_header does, but return what can be read together with the errors."""
    try:
        fields, base, size = read_fields(path)
    except InputError as error:
        return Header(entries=[], beyond=[], errors=[error])
    entries, wrong, unreadable = [], [], []
    for name, tensor in fields.items():
        try:
            entries.append(_entry(path, name, tensor, base))
        except Unreadable as error:
            unreadable.append(f"{name}: {error}")
        except ValueError as error:
            wrong.append(f"{name}: {error}")
    errors: list[InputError] = []
    if wrong:
        errors.append(DamagedError("E-CKPT-HEADER", f"{path}:{listed(wrong)}"))
    if unreadable:
        errors.append(NotSupportedError("E-CKPT-HEADER", f"{path}:{listed(unreadable)}"))
    if not errors:
        spans = [(e.begin - base, e.begin - base + e.nbytes, e.name) for e in entries]
        errors += layout_errors(path, spans, size - base)
    beyond = [entry for entry in entries if entry.begin + entry.nbytes > size]
    if beyond:
        ends = [f"{entry.name} ends at byte {entry.begin + entry.nbytes}" for entry in beyond]
        message = (
            f"{path}: the file has {size} bytes, but by its header {len(beyond)} tensors lie "
            f"beyond the end:{listed(ends)}\nCopy or download the file again"
        )
        errors.append(DamagedError("E-CKPT-TRUNCATED", message))
    return Header(entries=entries, beyond=beyond, errors=errors)


class Unreadable(Exception):
    """A tensor that its header describes rightly, in a dtype that torch does not have."""


def _entry(path: Path, name: str, fields: object, base: int) -> TensorEntry:
    """Return the entry; raises ValueError saying what is wrong with it, Unreadable what is not."""
    dtype, shape, begin, end = described(fields)
    if dtype in SUB_BYTE:
        raise Unreadable(f"dtype {dtype} packs several numbers into a byte, which isobit cannot")
    if dtype not in TORCH_DTYPES:
        raise ValueError(f"dtype {dtype[:80]!r} is not one of safetensors'")
    entry = TensorEntry(
        file=path, name=name, dtype=TORCH_DTYPES[dtype], shape=tuple(shape), begin=base + begin
    )
    if element_count(shape) * entry.dtype.itemsize != end - begin:
        raise ValueError(
            f"{dtype} {shape} needs {entry.nbytes} bytes, data_offsets give {end - begin}"
        )
    return entry


class SliceReader:
    """Reads slices of tensors with pread; counts the bytes that it read from files.

    Use as a context manager: it keeps the files open. Threads may share one.
    """

    def __init__(self) -> None:
        self.bytes_read = 0
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> SliceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(
        self, entry: TensorEntry, rows: Features | None = None, columns: Features | None = None
    ) -> torch.Tensor:
        """Return a tensor, or some rows and columns of a matrix.

        Consecutive rows are one read; a strip of columns is one read a row. Scattered rows are
        read one run at a time where a run is a page or longer, else the range around them is read
        and most of it dropped; the range around scattered columns always is. Raises InputError
        E-CKPT-TRUNCATED when the file has become shorter than its header says.
        """
        if rows is None and columns is None:
            out = torch.empty(entry.shape, dtype=entry.dtype)
            self._fill(entry, entry.begin, _bytes_of(out))
            return out
        n, k = entry.shape
        rows = slice(0, n) if rows is None else rows
        columns = slice(0, k) if columns is None else columns
        if isinstance(columns, torch.Tensor):
            left, right = bounds(columns)
            return self.read(entry, rows, slice(left, right))[:, columns - left]
        if isinstance(rows, slice):
            return self._rectangle(entry, rows, columns)
        if not len(rows):
            return self._rectangle(entry, slice(0, 0), columns)
        if (columns.stop - columns.start) * entry.dtype.itemsize < PAGE_BYTES:
            first, last = bounds(rows)
            return self._rectangle(entry, slice(first, last), columns)[rows - first]
        pieces = [self._rectangle(entry, run, columns) for run in _runs(rows)]
        return torch.cat(pieces)

    def _rectangle(self, entry: TensorEntry, rows: slice, columns: slice) -> torch.Tensor:
        k = entry.shape[1]
        count, left = max(0, rows.stop - rows.start), columns.start
        out = torch.empty((count, max(0, columns.stop - left)), dtype=entry.dtype)
        if not out.numel():
            return out
        width, view = entry.dtype.itemsize, _bytes_of(out)
        if out.shape[1] == k:
            self._fill(entry, entry.begin + rows.start * k * width, view)
            return out
        strip = out.shape[1] * width
        for row in range(count):
            begin = entry.begin + ((rows.start + row) * k + left) * width
            self._fill(entry, begin, view[row * strip : (row + 1) * strip])
        return out

    def read_range(self, entry: TensorEntry, begin: int, end: int) -> torch.Tensor:
        """Return elements [begin:end] of a vector."""
        out = torch.empty((max(0, end - begin),), dtype=entry.dtype)
        self._fill(entry, entry.begin + begin * entry.dtype.itemsize, _bytes_of(out))
        return out

    def _fill(self, entry: TensorEntry, offset: int, view: memoryview) -> None:
        while view.nbytes:
            try:
                read = os.preadv(self._descriptor(entry.file), [view], offset)
            except OSError as error:
                raise InputError(
                    "E-CKPT-MISSING", f"{entry.file}: cannot be read ({error.strerror})"
                ) from error
            if read == 0:
                raise DamagedError(
                    "E-CKPT-TRUNCATED",
                    f"{entry.file}: ended while reading {entry.name} at byte {offset}",
                )
            with self._lock:
                self.bytes_read += read
            offset, view = offset + read, view[read:]

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = open_regular(file)
            return self._descriptors[file]


def _runs(rows: torch.Tensor) -> list[slice]:
    """Cut indices into runs of consecutive ones, in their order."""
    starts = torch.cat((torch.tensor([0]), (rows.diff() != 1).nonzero().flatten() + 1)).tolist()
    ends = [*starts[1:], len(rows)]
    return [
        slice(int(rows[start]), int(rows[start]) + end - start)
        for start, end in zip(starts, ends, strict=True)
    ]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
