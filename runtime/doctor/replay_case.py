"""A file with all that is needed to examine the same case again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ..engine.replay import LAYOUTS, keep, read_json
from .diagnosis import Diagnosis

FORMAT = "isobit-doctor-1"
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "layout", "dtype", "all_reduce"), (str,)),
    **dict.fromkeys(("tp", "atoms", "max_tokens"), (int,)),
    "reference": (str, type(None)),
    "quick": (bool,),
    "max_model_len": (int, type(None)),
    "prompts": (list,),
}


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
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise InputError("E-REPLAY", f"{path}: format {content['format']!r:.40}, not {FORMAT}")
        # Cases of earlier versions say nothing of a length.
        case = {"max_model_len": None, **content["case"]}
        for name, kinds in KINDS.items():
            if type(case[name]) not in kinds:
                raise TypeError(f"{name} is {case[name]!r:.40}")
        if case["layout"] not in LAYOUTS:
            raise ValueError(f"layout is {case['layout']!r:.40}")
        if not all(type(token) is int for prompt in case["prompts"] for token in prompt):
            raise TypeError("token ids are not integers")
        return case
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("E-REPLAY", f"{path} is no case of isobit doctor: {error}") from error
