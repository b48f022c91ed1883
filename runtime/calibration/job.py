"""What the ranks of a calibration are told, and which of them quantizes what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import InputError

from ...shard.model.spec import ModelSpec
from ...shard.plan.modules import layer_modules
from ...shard.quantize.layer import INPUTS
from ...shard.quantize.method import MethodSettings
from ...shard.quantize.mixed import widths_from_fields
from ...shard.quantize.scheme import QuantizeSettings


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """How weights are stored, and by which method they are chosen."""

    stored: QuantizeSettings
    method: MethodSettings


@dataclass(frozen=True, kw_only=True)
class CalibrationJob:
    """The model, the folder with the run's state, and what is made of `samples` x `length` tokens.

    Files that a rank writes end in `run`, so that none is mistaken for one of a run that was
    killed.
    """

    model: Path
    folder: Path
    run: str
    settings: CalibrateSettings
    samples: int
    length: int
    degree: int

    def message(self) -> dict[str, Any]:
        """The job as it travels to a rank."""
        paths = {"model": str(self.model), "folder": str(self.folder)}
        return {**dataclasses.asdict(self), **paths}


def job_from_message(fields: Mapping[str, Any]) -> CalibrationJob:
    """Inverse of CalibrationJob.message; raises InputError E-WIRE when fields do not fit."""
    try:
        stored, method = fields["settings"]["stored"], fields["settings"]["method"]
        mixed = None if stored["mixed"] is None else widths_from_fields(stored["mixed"])
        plain = {**stored, "keep": tuple(stored["keep"]), "mixed": mixed}
        settings = CalibrateSettings(
            stored=QuantizeSettings(**plain),
            method=MethodSettings(**method),
        )
        paths = {name: Path(fields[name]) for name in ("model", "folder")}
        return CalibrationJob(**{**fields, **paths, "settings": settings})
    except (TypeError, KeyError) as error:
        raise InputError(
            "E-WIRE", f"calibration message from another version of isobit: {error}"
        ) from error


def share_out(spec: ModelSpec, degree: int) -> list[tuple[str, ...]]:
    """The keys of INPUTS whose Hessians each rank gathers and whose products it quantizes.

    The most work first, each to the rank that has the least: N K^2 for a product, K^3 / 3 for the
    factor of its Hessian. With more ranks than keys some have none.
    """
    modules = layer_modules(spec, 0)

    def work(first: str) -> int:
        k = modules[first].k
        return sum(modules[name].n for name in INPUTS[first]) * k**2 + k**3 // 3

    shares: list[list[str]] = [[] for _ in range(degree)]
    for first in sorted(INPUTS, key=work, reverse=True):
        min(shares, key=lambda share: sum(map(work, share))).append(first)
    return [tuple(first for first in INPUTS if first in share) for share in shares]
