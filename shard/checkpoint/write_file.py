"""Writing files and folders: under a temporary name first, renamed when they are whole."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isobit.errors import InputError


def write_beside(path: Path, text: str) -> None:
    """Put a file into a folder, or replace it there: all of it or nothing.

    Raises InputError E-OUT-WRITE; the folder is then as it was.
    """
    # A name that nobody can have taken or foreseen: no link is followed, no file is replaced.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with write_errors(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(partial, flags, 0o666)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def folder_to_be(out: Path, within: Path | None = None) -> Iterator[Path]:
    """Yield a new folder on the disk of `out`, which the block fills and renames to `out`.

    It lies in `within`, or beside `out`, inside a folder that nobody else can open and that goes
    with the block; its own mode is the one that the umask gives. Raises OSError.
    """
    parent = out.absolute().parent if within is None else within
    hidden = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    try:
        folder = hidden / "whole"
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy the contents of a regular file into a new one, readable for nobody who could not read
    the source. Raises OSError."""
    with source.open("rb") as read:
        allowed = os.fstat(read.fileno()).st_mode & 0o666
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(target, flags, allowed | 0o600), "wb") as written:
            shutil.copyfileobj(read, written)


def check_new_folder(out: Path) -> None:
    """Raise InputError E-OUT-EXISTS or E-OUT-PARENT for a folder that cannot be made."""
    if os.path.lexists(out):
        raise InputError("E-OUT-EXISTS", f"{out}: already exists. Remove it or choose another name")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise InputError("E-OUT-PARENT", f"{parent}: no such folder")


@contextmanager
def write_errors(out: Path) -> Iterator[None]:
    """Turn what the system refuses while `out` is being made into InputError E-OUT-WRITE."""
    try:
        yield
    except OSError as error:
        raise InputError("E-OUT-WRITE", f"{out}: cannot be written ({error})") from error
