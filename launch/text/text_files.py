"""Files that people give: plain text, and JSON line by line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from isobit.errors import InputError

Item = TypeVar("Item")
NO_TEXT = "no text in UTF-8"


def read_texts(files: Sequence[Path], code: str, unreadable: str = NO_TEXT) -> list[str]:
    """The texts of files; raises InputError `code` naming all that are no text or empty."""
    texts: list[str] = []
    wrong = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            wrong.append(f"{file}: {unreadable} ({error})")
            continue
        if not texts[-1].strip():
            wrong.append(f"{file}: empty")
    if wrong:
        raise InputError(code, "\n".join(wrong))
    return texts


def read_json_lines(path: Path, code: str, items: str, parse: Callable[[Any], Item]) -> list[Item]:
    """What `parse` makes of each line that is not blank; it raises ValueError for a wrong one.

    Raises InputError `code` naming all wrong lines, or a file without any `items`.
    """
    try:
        # splitlines() also cuts at characters that JSON allows inside texts, such as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(code, f"{path}: {NO_TEXT} ({error})") from error
    parsed: list[Item] = []
    wrong = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            parsed.append(parse(json.loads(line)))
        except RecursionError:
            wrong.append(f"{path}:{number}: nested too deeply")
        except ValueError as error:
            wrong.append(f"{path}:{number}: {error}")
    if not parsed and not wrong:
        wrong.append(f"{path}: no {items}")
    if wrong:
        raise InputError(code, "\n".join(wrong))
    return parsed
