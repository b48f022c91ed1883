"""What nobody has foreseen, as one coded message: full disks, no memory, faults of isobit's own."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

from isobit.errors import EnvironmentFault, InternalError, IsobitError

VARIABLE = "ISOBIT_TRACEBACK"
"""Set to 1, it shows where any error was raised."""
ROOT = str(Path(__file__).resolve().parent.parent)
MOST_CHARACTERS = 400
NO_MEMORY = ("can't allocate memory", "out of memory")
"""How torch says it, in a RuntimeError."""


def wants_traceback() -> bool:
    """Whether tracebacks were asked for."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def unexpected(error: Exception) -> IsobitError:
    """The error with a code that stands for an exception that no other code has met."""
    text = " ".join(str(error).split())[:MOST_CHARACTERS]
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in text for each in NO_MEMORY)
    ):
        said = f" ({text})" if text else ""
        return EnvironmentFault(
            "E-MEMORY",
            f"this machine gave no more memory{said}. `isobit plan MODEL -tp N` says how much a "
            "rank needs; give more ranks, a shorter context, or end other programs",
        )
    if isinstance(error, RecursionError):
        return InternalError(
            "E-RECURSION", f"what was read is nested more deeply than anything can be {_at(error)}"
        )
    if isinstance(error, OSError):
        return _of_system(error, text)
    if isinstance(error, ImportError):
        return EnvironmentFault(
            "E-IMPORT",
            f"{text}. `isobit doctor MODEL` says which part of the installation is broken",
        )
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return InternalError(
        "E-INTERNAL",
        f"{said} {_at(error)}. This is a fault of isobit, and no verdict on the model: please "
        f"report it with what {VARIABLE}=1 shows",
    )


def _of_system(error: OSError, text: str) -> EnvironmentFault:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = f"{error.strerror or text}{f': {names[0]}' if names else ''}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault("E-DISK-FULL", f"{what}. Make room there, or set TMPDIR elsewhere")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return EnvironmentFault("E-OPEN-FILES", f"{what}. `ulimit -n 4096` allows more open files")
    return EnvironmentFault("E-SYSTEM", f"{what} {_at(error)}")


def _at(error: Exception) -> str:
    """Where in isobit an exception came from, as in "(runtime/engine/engine.py:12)"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(ROOT + os.sep)] or list(frames)
    if not own:
        return "(nowhere)"
    return f"({own[-1].filename.removeprefix(ROOT + os.sep)}:{own[-1].lineno})"
