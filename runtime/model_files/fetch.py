"""A model's files from the driver's host into this host's cache: once, whole, checked, resumed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from isobit.errors import EnvironmentFault, InputError

from .cache import host_lock
from .hashes import CHUNK_BYTES, quick_hash
from .manifest import Manifest, ModelFile

PIECE_BYTES = 4 << 20
KEPT_FREE = 64 << 20

Pieces = Callable[[int, int], Iterator[bytes]]
"""`pieces(number, offset)`: the rest of file `number` of the manifest, in order."""


def fetch_model(wanted: Manifest, cache: Path, pieces: Pieces) -> Path:
    """Return a folder in `cache` that holds the files of `wanted`, fetching what it lacks.

    `wanted` has whole hashes, and the folder is named after them. One process of a host fetches,
    the others wait for it. A file carries its name only once all of it is there and its hash is
    right; what a killed process left is gone on with. Raises EnvironmentFault E-MODEL-DISK when
    the files do not fit, E-MODEL-WRITE when they cannot be written, and InputError
    E-MODEL-TRANSFER when what arrives is not what was announced.
    """
    folder = cache / "models" / wanted.content_hash()[:32]
    try:
        with host_lock(folder.with_suffix(".lock")):
            folder.mkdir(exist_ok=True)
            lacking = [n for n, file in enumerate(wanted.files) if not _is_there(folder, file)]
            _check_space(folder, [wanted.files[number] for number in lacking])
            for number in lacking:
                _fetch_file(folder, wanted.files[number], number, pieces)
    except OSError as error:
        raise EnvironmentFault(
            "E-MODEL-WRITE",
            f"{folder}: cannot be written ({error}). ISOBIT_CACHE=FOLDER on that host chooses "
            "another place",
        ) from error
    return folder


def read_piece(path: Path, offset: int, size: int) -> bytes:
    """Up to `size` bytes (at most PIECE_BYTES) of a file; raises OSError."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(min(size, PIECE_BYTES))


def _is_there(folder: Path, file: ModelFile) -> bool:
    """Whether a fetched file still is what it was; another one is removed."""
    path = folder / file.name
    if not path.is_file():
        return False
    if path.stat().st_size == file.size:
        weights = file.kind == "weights"
        if (quick_hash(path) if weights else _hash_so_far(path).hexdigest()) == file.quick:
            return True
    path.unlink()
    return False


def _check_space(folder: Path, lacking: list[ModelFile]) -> None:
    needed = sum(max(0, file.size - _partial_size(folder, file)) for file in lacking)
    free = shutil.disk_usage(folder).free
    if needed and needed + KEPT_FREE > free:
        raise EnvironmentFault(
            "E-MODEL-DISK",
            f"{folder}: {len(lacking)} files need {needed} bytes more, and {free} are free. "
            "ISOBIT_CACHE=FOLDER on that host chooses another place",
        )


def _partial(folder: Path, file: ModelFile) -> Path:
    return folder / f".{file.name}.partial"


def _partial_size(folder: Path, file: ModelFile) -> int:
    partial = _partial(folder, file)
    return partial.stat().st_size if partial.is_file() else 0


def _fetch_file(folder: Path, file: ModelFile, number: int, pieces: Pieces) -> None:
    partial = _partial(folder, file)
    resumed = 0 < _partial_size(folder, file) <= file.size
    if not resumed:
        partial.unlink(missing_ok=True)
    if not _arrives(partial, file, pieces(number, _partial_size(folder, file))):
        partial.unlink()
        # What a killed process left may have lost bytes that the system had not written yet.
        if not resumed or not _arrives(partial, file, pieces(number, 0)):
            partial.unlink(missing_ok=True)
            raise InputError(
                "E-MODEL-TRANSFER",
                f"{file.name}: what arrived is not what the driver announced ({file.size} bytes, "
                f"SHA-256 {file.whole[:12]}). Nothing was kept. Was the file changed meanwhile? "
                "Run the command again",
            )
    partial.replace(folder / file.name)


def _arrives(partial: Path, file: ModelFile, pieces: Iterator[bytes]) -> bool:
    """Append pieces to a partial file; say whether it then is the announced one."""
    digest = _hash_so_far(partial)
    with partial.open("ab") as out:
        size = out.tell()
        for piece in pieces:
            size += len(piece)
            if size > file.size:
                return False
            digest.update(piece)
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    return size == file.size and digest.hexdigest() == file.whole


def _hash_so_far(path: Path) -> hashlib._Hash:
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest
