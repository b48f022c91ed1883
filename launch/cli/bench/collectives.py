"""`isobit bench collectives`: what a sum over ranks costs on this host."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from isobit.errors import InputError

from ....runtime.collectives.measure import SIZES, Row, measure
from ....runtime.devices import refuse_cuda
from ...printable import human_bytes
from ..options.common import CpuDevice, Degree, Json
from ..output import console, print_json, spinner


def collectives(
    degree: Degree = 2,
    sizes: Annotated[
        str | None, typer.Option("--bytes", help="Message sizes, as in 64,20480 (multiples of 4).")
    ] = None,
    device: CpuDevice = "auto",
    as_json: Json = False,
) -> None:
    """Time the sum over ranks of this host: custom, gather and the library's own."""
    refuse_cuda(device, "isobit bench collectives", "isobit gpu check measures sums of GPUs")
    with spinner(f"measuring {degree} ranks", as_json):
        rows = measure(degree, SIZES if sizes is None else _parse_sizes(sizes))
    if as_json:
        print_json({"rows": [dataclasses.asdict(row) for row in rows]})
    else:
        _print(rows, degree)


def _parse_sizes(text: str) -> list[int]:
    """Parse "64,20480"; raises InputError E-USAGE."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) and not int(part) % 4 for part in parts):
        raise InputError(
            "E-USAGE", f"--bytes {text!r}: expected multiples of 4 between commas, as in 64,20480"
        )
    return [int(part) for part in parts]


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
    console.print("library is torch.distributed's all_reduce: its bits depend on tp")
