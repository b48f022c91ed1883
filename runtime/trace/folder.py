"""A trace on disk: a folder with an index and each rank's values, whole or not there at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch

from isobit.errors import InputError

from ...shard.checkpoint.safetensors_file import SliceReader, TensorEntry, read_header
from ...shard.checkpoint.write_file import check_new_folder, folder_to_be
from .index import Row, TracedSite, TraceIndex, pack_index, unpack_index
from .tracer import TraceRecord
from .values import tensor_name, values_name

INDEX = "index.msgpack"
MOST_INDEX_BYTES = 2 << 30


@contextmanager
def new_trace(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out` when the block ends well, and goes otherwise.

    Raises InputError E-OUT-EXISTS, E-OUT-PARENT, E-TRACE-DISK.
    """
    check_new_folder(out)
    with ExitStack() as leaving:
        try:
            folder = leaving.enter_context(folder_to_be(out))
        except OSError as error:
            parent = out.absolute().parent
            raise InputError("E-TRACE-DISK", f"{parent}: cannot be written ({error})") from error
        yield folder
        try:
            folder.rename(out)
        except OSError as error:
            raise InputError("E-OUT-EXISTS", f"{out}: appeared meanwhile ({error})") from error


def write_index(folder: Path, index: TraceIndex) -> None:
    """Write the index of a trace; raises InputError E-TRACE-DISK."""
    try:
        (folder / INDEX).write_bytes(pack_index(index))
    except OSError as error:
        raise InputError("E-TRACE-DISK", f"{folder}: cannot be written ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The columns [begin:end) of a site that one rank recorded in one step, in parts."""

    rank: int
    begin: int
    end: int
    parts: tuple[TraceRecord, ...]
    entry: TensorEntry | None

    def part_of(self, column: int) -> str:
        """The name of the part that a column of the unsharded tensor lies in."""
        return next(part.part for part in self.parts if part.begin <= column < part.end)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A trace that was read. Values stay on disk until `read` asks for some rows."""

    folder: Path
    index: TraceIndex
    reader: SliceReader
    pieces: dict[tuple[str, int], list[Piece]] = field(repr=False)
    """By site and step."""

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    def site(self, name: str) -> TracedSite | None:
        return next((site for site in self.index.sites if site.name == name), None)

    def read(self, entry: TensorEntry, rows: Sequence[int]) -> torch.Tensor:
        """Rows [len(rows), columns] of a recorded tensor, in its dtype."""
        runs = []
        for _, run in groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0]):
            places = [row for _, row in run]
            runs.append(self.reader.read(entry, slice(places[0], places[-1] + 1)))
        return torch.cat(runs)

    def places(self, site: TracedSite) -> dict[Row, tuple[int, int]]:
        """Where each row of a site is: its step, and its place among the step's rows."""
        return {
            row: (step, place)
            for step in range(len(self.index.steps))
            for place, row in enumerate(self.index.rows(step, site.sampled))
        }


def read_trace(folder: Path) -> Trace:
    """Open a trace, with all sizes checked against the files before memory is taken.

    Raises InputError E-TRACE-MISSING, E-TRACE-INDEX, E-TRACE-DAMAGED.
    """
    path = folder / INDEX
    try:
        index = unpack_index(_contents(path), str(path))
    except OSError as error:
        raise InputError(
            "E-TRACE-MISSING",
            f"{folder} is no trace: {INDEX} cannot be read ({error.strerror}). isobit trace makes "
            "one",
        ) from error
    entries: dict[int, dict[str, TensorEntry]] = {}
    for rank in range(index.degree):
        file = folder / values_name(rank)
        if "values" in index.settings.records and index.settings.wants_rank(rank):
            entries[rank] = _entries(file)
    pieces: dict[tuple[str, int], list[Piece]] = {}
    wrong: list[str] = []
    for step, ranks in enumerate(index.records):
        for rank, records in enumerate(ranks):
            for name, group in groupby(records, key=lambda record: record.site):
                parts, held = tuple(group), entries.get(rank)
                entry = None if held is None else held.get(tensor_name(step, name))
                piece = Piece(
                    rank=rank, begin=parts[0].begin, end=parts[-1].end, parts=parts, entry=entry
                )
                if held is not None:
                    wrong += _misfits(folder, index, step, name, piece)
                pieces.setdefault((name, step), []).append(piece)
    if wrong:
        raise InputError("E-TRACE-DAMAGED", "\n".join(wrong[:20]))
    return Trace(folder=folder, index=index, reader=SliceReader(), pieces=pieces)


def _contents(path: Path) -> bytes:
    """All bytes of an index. Raises InputError E-TRACE-INDEX for what is no file, or too large;
    OSError."""
    # A pipe would keep whoever opens it waiting for a writer.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError("E-TRACE-INDEX", f"{path}: no regular file, as an index is")
        if status.st_size > MOST_INDEX_BYTES:
            raise InputError(
                "E-TRACE-INDEX", f"{path}: {status.st_size} bytes, more than any index has"
            )
        return file.read()


def _entries(file: Path) -> dict[str, TensorEntry]:
    try:
        return {entry.name: entry for entry in read_header(file)}
    except InputError as error:
        raise InputError("E-TRACE-DAMAGED", error.message) from error


def _misfits(folder: Path, index: TraceIndex, step: int, name: str, piece: Piece) -> list[str]:
    """What does not fit between the index and the values of a piece."""
    where = f"{folder / values_name(piece.rank)}: {tensor_name(step, name)}"
    if piece.entry is None:
        return [f"{where} is missing"]
    sampled = next(site.sampled for site in index.sites if site.name == name)
    wanted = (len(index.rows(step, sampled)), piece.end - piece.begin)
    if piece.entry.shape != wanted:
        return [f"{where} is {list(piece.entry.shape)}, the index says {list(wanted)}"]
    ends = [piece.begin, *(part.end for part in piece.parts)]
    if ends[:-1] != [part.begin for part in piece.parts]:
        return [f"{where}: its parts do not follow one another"]
    return []
