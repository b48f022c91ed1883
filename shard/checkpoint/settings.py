"""Reading a checkpoint's JSON files, with one clear error for what is wrong."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

from isobit.errors import DamagedError, InputError

MOST_JSON_BYTES = 64 << 20
"""The largest index of a published model takes some 10 MB; a config some KB."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 60, 60, 40


def shown(value: object) -> str:
    """A value from a file for a message: short, on one line, whatever its depth and length."""
    return _SHORT.repr(value)


BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(path: Path, *, marked: bool = False) -> dict[str, Any]:
    """Read a JSON object; with `marked` a byte order mark in front of it is skipped.

    Raises DamagedError E-MODEL-JSON when the file is none, is larger than MOST_JSON_BYTES, or
    gives one key two values; InputError E-MODEL-JSON when it cannot be read at all.
    """
    try:
        if (size := path.stat().st_size) > MOST_JSON_BYTES:
            raise DamagedError(
                "E-MODEL-JSON",
                f"{path}: {size} bytes; settings of a model take at most {MOST_JSON_BYTES}",
            )
        text = path.read_text(encoding="utf-8-sig" if marked else "utf-8")
        value = json.loads(text, object_pairs_hook=_object)
    except OSError as error:
        raise InputError("E-MODEL-JSON", f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError("E-MODEL-JSON", f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError(
            "E-MODEL-JSON", f"{path}: expected a JSON object, found {type(value).__name__}"
        )
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a key with two values: parsers differ in which of them they take."""
    values = dict(pairs)
    if len(values) != len(pairs):
        for key, value in pairs:
            if value != values[key]:
                raise ValueError(f"{shown(key)} is {shown(value)} and also {shown(values[key])}")
    return values


def read_config(model: Path) -> dict[str, Any]:
    """Return config.json of a model folder.

    Raises InputError E-MODEL-MISSING when the folder or its config.json does not exist.
    """
    if not model.is_dir():
        raise InputError(
            "E-MODEL-MISSING",
            f"{model}: no such folder. Give the path of a folder that holds config.json and "
            "*.safetensors",
        )
    path = model / "config.json"
    if not path.is_file():
        raise InputError(
            "E-MODEL-MISSING",
            f"{model}: no config.json in this folder. It is the file that says the model's shape; "
            "copy it from where the weights came from",
        )
    return read_json(path)
