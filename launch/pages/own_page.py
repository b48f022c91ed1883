"""Where a page may be written: nowhere, or over one that the same command has made."""

from __future__ import annotations

from pathlib import Path

from isobit.errors import InputError

_HEAD_BYTES = 1024


def check_page(path: Path, generator: str) -> None:
    """Raise InputError E-OUT-PARENT or E-OUT-EXISTS where no page may be written.

    `generator` is the command, as "isobit doctor". A page of an earlier run of it is replaced;
    anything else that is there stays.
    """
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError("E-OUT-PARENT", f"{parent}: no such folder")
    if path.exists() and not _is_page(path, generator):
        raise InputError(
            "E-OUT-EXISTS",
            f"{path}: already exists and is no report of {generator}. Remove it or choose another "
            "name",
        )


def _is_page(path: Path, generator: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f'<meta name="generator" content="{generator}">'.encode() in file.read(_HEAD_BYTES)
