"""A file with all that is needed to examine the same case again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...kernels.errors import InputError
from ..replay import keep
from .diagnosis import Diagnosis

FORMAT = "isobit-doctor-1"


def write_case(diagnosis: Diagnosis) -> Path:
    """Write the case and its verdict, in one piece, and return the path. Raises OSError."""
    report = diagnosis.report()
    content = {
        "format": FORMAT,
        "case": diagnosis.case,
        "variables": {k: v for k, v in os.environ.items() if k.startswith(("ISOBIT_", "NCCL_"))},
        **{key: report[key] for key in ("verdict", "what", "site", "rank", "atom", "evidence")},
    }
    return keep("doctor", content)


def read_case(path: Path) -> dict[str, Any]:
    """The case of such a file, as Case.report gives it; raises InputError E-REPLAY."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise InputError("E-REPLAY", f"{path}: format {content['format']!r}, not {FORMAT}")
        case = content["case"]
        case["prompts"] = [[int(token) for token in prompt] for prompt in case["prompts"]]
        return case
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E-REPLAY", f"{path} is no case of isobit doctor: {error}") from error
