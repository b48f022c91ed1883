"""The CUDA kernels on this card: are they right, are bits where they are promised, how fast.

    python -m bench.gpu [--dry-run] [--checks-only] [--minutes 8] [--out FILE.json]

Checks every kernel against float64 and against itself (other rows beside a row, other blocks, the
two schedules, degrees 1, 2, 3, 4 and 8 one after the other), then measures products beside cuBLAS
and torch's int4 kernel in the same run. Prints tables; --out keeps everything as JSON. What does
not fit into the minutes is left out and named. --dry-run lists the work and needs no GPU. Status 1
if a check fails.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import torch
from isobit.kernels.gpu.catalog import FORMS
from rich.console import Console
from rich.table import Table

from .gpu_checks import Failed, checks
from .gpu_speed import copy_bandwidth, measure

MEASURED = (FORMS[0], FORMS[1], FORMS[6], FORMS[8], FORMS[9], FORMS[10])
SHAPES = ((8192, 8192), (5120, 5120), (13824, 5120), (5120, 13824))
"""N x K: a square one, and the products of a model of 14B parameters."""
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
COLUMNS = {
    "rows": ("rows", "{:.0f}"),
    "us": ("us", "{:.1f}"),
    "GB/s": ("gb_s", "{:.0f}"),
    "of copy": ("bandwidth_share", "{:.2f}"),
    "GFLOP/s": ("gflop_s", "{:.0f}"),
    "one chain": ("one_chain_us", "{:.1f}"),
    "cuBLAS": ("cublas_bf16_us", "{:.1f}"),
    "tinygemm": ("tinygemm_us", "{:.1f}"),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and measure the CUDA kernels.")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--checks-only", action="store_true", help="measure nothing")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop beginning work after this")
    parser.add_argument("--out", type=Path, help="where to keep the results as JSON")
    return parser.parse_args()


def main() -> None:
    chosen, console = arguments(), Console()
    cases = [(form, n, k, rows) for n, k in SHAPES for form in MEASURED for rows in ROWS]
    if chosen.dry_run:
        for name in checks():
            console.print(f"check    {name}", highlight=False)
        if not chosen.checks_only:
            for form, n, k, rows in cases:
                console.print(
                    f"measure  {form.name}, {n} x {k}, {rows} rows", highlight=False, soft_wrap=True
                )
        return
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here; --dry-run says what would be done")
    end = time.monotonic() + 60 * chosen.minutes
    report: dict = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "checks": {},
        "products": [],
        "left_out": [],
    }
    failed = 0
    for name, check in checks().items():
        if time.monotonic() > end:
            report["left_out"].append(name)
            continue
        try:
            seen = check()
        except Failed as error:
            seen, failed = f"FAILED: {error}", failed + 1
        report["checks"][name] = seen
        console.print(f"{name}: {seen}", highlight=False)
    if not chosen.checks_only:
        report["copy_gb_s"] = (bandwidth := copy_bandwidth()) / 1e9
        console.print(f"copy: {bandwidth / 1e9:.0f} GB/s")
        for form, n, k, rows in cases:
            if time.monotonic() > end:
                report["left_out"].append(f"{form.name}, {n} x {k}, {rows} rows")
                continue
            report["products"].append(measure(form, n, k, rows, bandwidth))
        console.print(table(report["products"]))
    if report["left_out"]:
        console.print(f"left out for want of time: {len(report['left_out'])}")
    if chosen.out:
        chosen.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(int(failed > 0))


def table(products: list[dict]) -> Table:
    """Times in microseconds; `one chain` is ours without a tree over atoms."""
    made = Table("weight", "N x K", *COLUMNS)
    for one in products:
        cells = [form.format(one[key]) if key in one else "" for key, form in COLUMNS.values()]
        made.add_row(one["weight"], f"{one['n']} x {one['k']}", *cells)
    return made


if __name__ == "__main__":
    main()
