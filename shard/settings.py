"""Reading settings out of a checkpoint's JSON files, with one clear error for what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..kernels.errors import DamagedError, InputError

MOST_JSON_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises InputError E-MODEL-JSON when it is not one."""
    try:
        if (size := path.stat().st_size) > MOST_JSON_BYTES:
            raise DamagedError(
                "E-MODEL-JSON", f"{path}: {size} bytes, at most {MOST_JSON_BYTES} are read"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("E-MODEL-JSON", f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError("E-MODEL-JSON", f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError(
            "E-MODEL-JSON", f"{path}: expected a JSON object, found {type(value).__name__}"
        )
    return value


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


def positive_int(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return config[key] as a positive integer; raises InputError E-CONFIG-VALUE."""
    value = config.get(key, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise DamagedError(
            "E-CONFIG-VALUE", f"config.json: {key} is {value!r}, expected a positive integer"
        )
    return value


def positive_number(config: dict[str, Any], key: str, default: float | None, code: str) -> float:
    """Return config[key] as a positive, finite float; raises InputError with `code`."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise DamagedError(code, f"config.json: {key} is {value!r}, expected a positive number")
    return float(value)
