"""`isobit bench collectives`: what a sum over ranks costs on this host."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from ...runtime.collectives.measure import Row, measure
from .options import Degree, Json
from .output import console, human_bytes, print_json, spinner


def collectives(degree: Degree = 2, as_json: Json = False) -> None:
    """Time the sum over ranks of this host: custom, gather and the library's own."""
    with spinner(f"measuring {degree} ranks", as_json):
        rows = measure(degree)
    if as_json:
        print_json({"rows": [dataclasses.asdict(row) for row in rows]})
    else:
        _print(rows, degree)


def _print(rows: list[Row], degree: int) -> None:
    modes = list(dict.fromkeys(row.mode for row in rows))
    table = Table(title=f"sum over {degree} ranks: median (99th percentile) in microseconds")
    for heading in ("message", *modes, "library / custom"):
        table.add_column(heading, justify="right")
    for size in dict.fromkeys(row.bytes for row in rows):
        of_size = {row.mode: row for row in rows if row.bytes == size}
        times = [f"{of_size[mode].p50_us:.1f} ({of_size[mode].p99_us:.0f})" for mode in modes]
        ratio = of_size["library"].p50_us / of_size["custom"].p50_us
        table.add_row(human_bytes(size), *times, f"{ratio:.1f}")
    console.print(table)
    console.print("library is torch.distributed's all_reduce: its bits depend on the degree")
