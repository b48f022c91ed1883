"""How fast products and models are on this card. Whether they are right: `isobit gpu check`.

    python -m bench.gpu [--dry-run] [--minutes 8] [--out FILE.jsonl]

Measures products beside cuBLAS and torch's int4 kernel in the same run, and decoding of models of
7B, 14B and 32B parameters. Each part is a child process that begins again behind what ended it;
--out has each result as a line of JSON as soon as it is there. What there was no time for is named.
--dry-run lists the work and needs no GPU. Status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import gpu_models, gpu_tables
from .gpu_budget import PARTS, Budget
from .gpu_children import resumed
from .gpu_speed import copy_gb_s, describe, products

PRODUCTS, MODELS = (part.name for part in PARTS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the CUDA kernels and models.")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--minutes", type=float, default=8.0, help="what all parts may take")
    parser.add_argument("--out", type=Path, help="where to append the results, a line each")
    return parser.parse_args()


def planned() -> dict[str, list[str]]:
    """What each part would do."""
    batches = ", ".join(map(str, gpu_models.BATCHES))
    return {
        PRODUCTS: [describe(product) for product in products()],
        MODELS: [f"{run.name}, batches of {batches}" for run in gpu_models.RUNS],
    }


class Bench:
    """One run: what is found goes to the file and the terminal as it comes."""

    def __init__(self, minutes: float, out: Path | None, console: Console) -> None:
        self.budget, self.console, self.failed = Budget(minutes), console, 0
        self._out = out

    def write(self, **entry: Any) -> None:
        if self._out is not None:
            with self._out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def products(self) -> None:
        work, found = products(), []

        def row(at: int, line: dict[str, Any]) -> None:
            found.append(line)
            self.write(product=describe(work[at]), **line)

        def error(at: int, text: str) -> None:
            self.fail(describe(work[at]), text)

        begun = resumed(
            lambda at: ["-m", "bench.gpu_speed", str(at)],
            len(work),
            lambda: self.budget.seconds_left(PRODUCTS),
            row,
            error,
        )
        self.console.print(gpu_tables.of_products(found))
        self.left_out(PRODUCTS, [describe(product) for product in work[begun:]])

    def models(self, copied_gb_s: float) -> None:
        found, left = [], []
        for run in gpu_models.RUNS:
            seconds = self.budget.seconds_left(MODELS)
            if seconds <= 0:
                left.append(run.name)
                continue
            measured = gpu_models.measured(run, seconds, lambda row, run=run: self.write(
                model=run.name, **row))  # fmt: skip
            if measured["error"]:
                self.fail(run.name, measured["error"])
            found.append(measured)
        self.console.print(gpu_tables.of_models(found, copied_gb_s * 1e9))
        for batch, cost in gpu_models.contract_cost(found).items():
            self.write(contract_cost=cost, batch=batch)
            self.console.print(f"the contract costs {cost:.1%} of a decode step at batch {batch}")
        self.left_out(MODELS, left)

    def fail(self, what: str, text: str) -> None:
        self.failed += 1
        self.write(failed=what, error=text)
        self.console.print(f"FAILED {what}: {text}", highlight=False, markup=False)

    def left_out(self, part: str, items: Sequence[str]) -> None:
        for item in items:
            self.write(left_out=f"{part}: {item}")
        if items:
            self.console.print(f"{part}: {len(items)} left out for want of time")


def main() -> None:
    chosen, console = arguments(), Console()
    if chosen.dry_run:
        for part, items in planned().items():
            for item in items:
                console.print(f"{part}: {item}", highlight=False, soft_wrap=True)
        for part in PARTS:
            console.print(
                f"{part.name}: at most {60 * chosen.minutes * part.share:.0f} s, and what parts "
                "before it left", highlight=False, soft_wrap=True,
            )  # fmt: skip
        return
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here; --dry-run says what would be done")
    bench = Bench(chosen.minutes, chosen.out, console)
    copied = copy_gb_s()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    bench.write(date=now, card=torch.cuda.get_device_name(), torch=torch.__version__,
                copy_gb_s=copied)  # fmt: skip
    bench.products()
    bench.models(copied)
    sys.exit(int(bench.failed > 0))


if __name__ == "__main__":
    main()
