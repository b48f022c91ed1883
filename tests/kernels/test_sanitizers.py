"""`make sanitize` is worth its name: a read out of bounds and an overflow end the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    "ISOBIT_SANITIZE" not in os.environ, reason="make sanitize builds the module for this"
)

OUT_OF_BOUNDS = "x = torch.zeros(16, dtype=torch.uint8); _cpu.digest(x.data_ptr(), 24, 0)"
WIDE = "_cpu.weight(4, 0, 0, 0, 0, 0, 2**63 - 1, 0, 0, 0, 0, 0, 0, False, 0.0)"
OVERFLOW = f"_cpu.linear({WIDE}, 0, 0, 1, 0, 0)"


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        (OUT_OF_BOUNDS, "heap-buffer-overflow"),
        (OVERFLOW, "signed integer overflow"),
        ("pass", None),
    ],
    ids=["out of bounds", "overflow", "no fault"],
)
def test_a_fault_is_reported(fault: str, report: str | None) -> None:
    code = f"import torch; from isobit.kernels import _cpu; {fault}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == (report is not None), done.stderr
    assert report is None or report in done.stderr
