"""One process of a step: a GPU that faults, dies or hangs takes nothing but this process along."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isobit.errors import InputError, IsobitError

from .place import NotRun, Place, Report, Wrong

FAULT = "ISOBIT_GPU_FAULT"
STATUS_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class FaultPoint:
    """What `ISOBIT_GPU_FAULT=package.module:callable` is called with before a step."""

    step: str
    place: Place


def files_of(folder: Path, rank: int) -> tuple[Path, Path]:
    """Where a rank writes what it found, and what it said."""
    return folder / f"found-{rank}.jsonl", folder / f"said-{rank}.txt"


def run_step(
    name: str, function: str, fields: Mapping[str, Any], environment: Mapping[str, str]
) -> None:
    """Run a step as the process that this is; what it found is in its file."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    place = Place(**fields)
    found, said = files_of(place.folder, place.rank)
    with said.open("w") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    with found.open("w") as file:
        report = Report(file)
        try:
            _prepare(place)
            _seed_fault(FaultPoint(step=name, place=place))
            _function(function)(place, report)
            if not place.rehearsal:
                torch.cuda.synchronize(place.device)
        except NotRun as reason:
            report.end("not run", str(reason))
        except Wrong as wrong:
            report.end("failed", str(wrong), "wrong result")
        except IsobitError as error:
            report.end("failed", f"{error.code} {error.message}", "error")
        except Exception as error:  # noqa: BLE001
            # Whatever it is, it is what the step found; the whole of it is in the log.
            traceback.print_exc()
            report.end("failed", f"{type(error).__name__}: {error}", "exception")
        else:
            report.end("passed")
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of libraries and a broken context must not hold up the end.
    os._exit(0)


def _prepare(place: Place) -> None:
    torch.set_num_threads(1)
    if place.rehearsal:
        from ...kernels.gpu.simulated.interpreter import install

        install()
    else:
        torch.cuda.set_device(place.device)


def _function(name: str) -> Callable[[Place, Report], None]:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), attribute)


def _seed_fault(point: FaultPoint) -> None:
    """Raises InputError E-FAULT."""
    named = os.environ.get(FAULT)
    if not named:
        return
    module, _, attribute = named.partition(":")
    try:
        fault = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError("E-FAULT", f"{FAULT}={named}: {error}") from error
    fault(point)
