"""Writing a text file: to a temporary name first, renamed when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..kernels.errors import InputError


def write_beside(path: Path, text: str) -> None:
    """Put a file into a folder, or replace it there: all of it or nothing.

    Raises InputError E-OUT-WRITE; the folder is then as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    with write_errors(path):
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def write_errors(out: Path) -> Iterator[None]:
    """Turn what the system refuses while `out` is being made into InputError E-OUT-WRITE."""
    try:
        yield
    except OSError as error:
        raise InputError("E-OUT-WRITE", f"{out}: cannot be written ({error})") from error
