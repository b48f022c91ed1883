"""`--jsonl FILE|-`: one JSON object for each request, a line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ...shard.checkpoint.write_file import write_beside

STANDARD_OUTPUT = "-"


def check_lines(target: str | None, as_json: bool) -> None:
    """Raise InputError E-USAGE for a file that cannot be written, before anything is computed."""
    if target is None:
        return
    if target == STANDARD_OUTPUT:
        if as_json:
            raise InputError("E-USAGE", "--jsonl - and --json both write to standard output")
        return
    path = Path(target)
    if path.is_dir() or not path.parent.is_dir():
        what = "a folder" if path.is_dir() else f"{path.parent} is no folder"
        raise InputError(
            "E-USAGE", f"--jsonl {target}: {what}; give a file, or - for standard output"
        )


def write_lines(target: str, records: Sequence[dict[str, Any]]) -> None:
    """Write the records, all of them or none; a file that is there is replaced.

    Raises InputError E-OUT-WRITE.
    """
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if target == STANDARD_OUTPUT:
        sys.stdout.write(lines)
        sys.stdout.flush()
    else:
        write_beside(Path(target), lines)
