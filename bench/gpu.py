"""The CUDA kernels and models on this card: are they right, are bits where promised, how fast.

    python -m bench.gpu [--dry-run] [--checks-only] [--minutes 8] [--out FILE.json]

Checks every kernel against float64 and against itself (other rows beside a row, other blocks, the
two schedules, degrees 1, 2, 3, 4 and 8 one after the other), and the all-reduce of two ranks that
share this card; then measures products beside cuBLAS and torch's int4 kernel in the same run, and
decoding of models of 7B, 14B and 32B parameters. Prints tables; --out keeps everything as JSON.
Every part has a share of the minutes and stops when it has used it; what is left out is named.
--dry-run lists the work and needs no GPU. Status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from isobit.kernels.gpu.catalog import FORMS, WeightForm
from rich.console import Console

from . import gpu_models, gpu_ranks, gpu_tables
from .gpu_budget import PARTS, Budget
from .gpu_checks import Failed, checks
from .gpu_speed import copy_bandwidth, measure

MEASURED = (FORMS[0], FORMS[1], FORMS[6], FORMS[8], FORMS[9], FORMS[10])
SHAPES = ((8192, 8192), (5120, 5120), (13824, 5120), (5120, 13824))
"""N x K: a square one, and the products of a model of 14B parameters."""
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
Product = tuple[WeightForm, int, int, int]
CHECKS, RANKS, PRODUCTS, MODELS = (part.name for part in PARTS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and measure the CUDA kernels and models.")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--checks-only", action="store_true", help="measure nothing")
    parser.add_argument("--minutes", type=float, default=8.0, help="what all parts may take")
    parser.add_argument("--out", type=Path, help="where to keep the results as JSON")
    return parser.parse_args()


def products() -> list[Product]:
    """The shape that is judged first, then the others."""
    return [(form, n, k, rows) for n, k in SHAPES for form in MEASURED for rows in ROWS]


def describe(product: Product) -> str:
    form, n, k, rows = product
    return f"{form.name}, {n} x {k}, {rows} rows"


def planned(checks_only: bool) -> dict[str, list[str]]:
    """What each part would do."""
    work = {CHECKS: list(checks()), RANKS: gpu_ranks.planned()}
    if not checks_only:
        work[PRODUCTS] = [describe(product) for product in products()]
        batches = ", ".join(map(str, gpu_models.BATCHES))
        work[MODELS] = [f"{run.name}, batches of {batches}" for run in gpu_models.RUNS]
    return work


class Bench:
    """One run: what was found goes into `report`, and to the terminal as it comes."""

    def __init__(self, minutes: float, console: Console) -> None:
        self.budget, self.console, self.failed = Budget(minutes), console, 0
        self.report: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "card": torch.cuda.get_device_name(),
            "torch": torch.__version__,
        }

    def check(self) -> None:
        found = self.report["checks"] = {}
        cases = checks()
        for name in self.budget.items(CHECKS, cases, str):
            found[name] = self._seen(cases[name])
            self.console.print(f"{name}: {found[name]}", highlight=False)

    def ranks(self) -> None:
        found = self.report["two_ranks"] = gpu_ranks.two_ranks(self.budget.seconds_left(RANKS))
        self.failed += found["error"] is not None
        self.console.print(gpu_tables.of_ranks(found))

    def products(self) -> None:
        bandwidth = copy_bandwidth()
        self.report["copy_gb_s"] = bandwidth / 1e9
        self.console.print(f"copy: {bandwidth / 1e9:.0f} GB/s")
        found = self.report["products"] = []
        for product in self.budget.items(PRODUCTS, products(), describe):
            found.append(measure(*product, bandwidth))
        self.console.print(gpu_tables.of_products(found))

    def models(self) -> None:
        found = self.report["models"] = []
        # Engines run in processes of their own, and need the memory.
        torch.cuda.empty_cache()
        for run in self.budget.items(MODELS, gpu_models.RUNS, lambda run: run.name):
            found.append(gpu_models.measured(run, self.budget.seconds_left(MODELS)))
        self.report["contract_cost"] = gpu_models.contract_cost(found)
        self.console.print(gpu_tables.of_models(found, self.report["copy_gb_s"] * 1e9))
        for batch, cost in self.report["contract_cost"].items():
            self.console.print(f"the contract costs {cost:.1%} of a decode step at batch {batch}")

    def _seen(self, check: Callable[[], str]) -> str:
        try:
            return check()
        except Failed as error:
            self.failed += 1
            return f"FAILED: {error}"


def main() -> None:
    chosen, console = arguments(), Console()
    if chosen.dry_run:
        for part in PARTS:
            for item in planned(chosen.checks_only).get(part.name, []):
                console.print(f"{part.name}: {item}", highlight=False, soft_wrap=True)
        for part in PARTS:
            console.print(
                f"{part.name}: at most {60 * chosen.minutes * part.share:.0f} s, and what parts "
                "before it left", highlight=False, soft_wrap=True,
            )  # fmt: skip
        return
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here; --dry-run says what would be done")
    bench = Bench(chosen.minutes, console)
    bench.check()
    bench.ranks()
    if not chosen.checks_only:
        bench.products()
        bench.models()
    bench.report["left_out"] = bench.budget.left_out
    for line in bench.budget.left_out:
        console.print(f"left out for want of time: {line}", highlight=False)
    if chosen.out:
        chosen.out.write_text(json.dumps(bench.report, indent=1) + "\n")
    sys.exit(int(bench.failed > 0))


if __name__ == "__main__":
    main()
