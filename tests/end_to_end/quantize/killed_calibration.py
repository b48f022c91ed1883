"""Calibrations that kill themselves: `python -m …killed_calibration MODEL TOP JOBS`.

JOBS is JSON, for each name under TOP when to kill: after so many calls of progress, or when a named
method of the state is called for the n-th time; and the degree.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from isobit.runtime.calibration.calibrate import quantize_calibrated
from isobit.runtime.calibration.state import CalibrationState
from isobit.runtime.ranks.launcher import LocalLauncher

from .test_calibrate import SETTINGS


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(model: Path, out: Path, samples: torch.Tensor, job: dict[str, Any]) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == job["calls"]:
            die()

    method = job["before"]
    if method is not None:
        original = getattr(CalibrationState, method)

        def counted(*arguments: Any) -> Any:
            count()
            return original(*arguments)

        setattr(CalibrationState, method, counted)
    quantize_calibrated(
        model,
        out,
        samples,
        SETTINGS[job["method"]],
        count if method is None else lambda done, total: None,
        degree=job["degree"],
        launcher=None if job["degree"] == 1 else LocalLauncher(),
    )


def main() -> None:
    model, top, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    samples = torch.tensor(json.loads((top / "samples.json").read_text()))
    for name, job in jobs.items():
        child = os.fork()
        if not child:
            run(model, top / name, samples, job)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{name} ended with {status}"


if __name__ == "__main__":
    main()
