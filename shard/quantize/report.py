"""What quantizing a folder did: for people, and as quantization_report.json beside the weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.write_file import write_beside

REPORT = "quantization_report.json"


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """How one weight was quantized.

    `sqnr_db` is 10 log10(signal power / error power) of the weight. `layer_error` is the share of
    error in the product's outputs, after folding: tr((W-Q) H (W-Q)^T) / tr(W H W^T) over all
    calibration inputs, or with int8 activations that of some inputs, their rounding included.
    `nearest_error` is that of rounding to nearest with the same bits and groups. `clipped` is the
    share of weights outside the range of codes. `damp_percent`, `retries` and `dead` are
    GptqStats'; `ratio` is AWQ's, or SmoothQuant's alpha, where scales were folded. None stands for
    what a method does not have.
    """

    bits: int
    sqnr_db: float
    clipped: float = 0.0
    layer_error: float | None = None
    nearest_error: float | None = None
    damp_percent: float | None = None
    retries: int | None = None
    dead: int | None = None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """`modules` by module name."""

    source_bytes: int
    written_bytes: int
    modules: Mapping[str, ModuleReport]

    @property
    def sqnr_db(self) -> dict[str, float]:
        return {name: module.sqnr_db for name, module in self.modules.items()}


def report_json(settings: Mapping[str, Any], modules: Mapping[str, ModuleReport]) -> dict[str, Any]:
    """The contents of REPORT; a weight without any error has sqnr_db null."""
    described = {}
    for name, module in modules.items():
        fields = {k: v for k, v in dataclasses.asdict(module).items() if v is not None}
        exact = not math.isfinite(module.sqnr_db)
        described[name] = fields | ({"sqnr_db": None} if exact else {})
    return {"settings": dict(settings), "modules": described}


def extend_report(out: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the REPORT of a folder, and return all of it; the file is replaced as a whole.

    Raises InputError E-OUT-WRITE, after which the file is as it was.
    """
    path = out / REPORT
    contents = json.loads(path.read_text()) | dict(more)
    write_beside(path, json.dumps(contents, indent=2) + "\n")
    return contents
