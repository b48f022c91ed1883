"""`isobit bench kernels`: every op on real shapes, beside the machine's limits and torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

from isobit.errors import InputError

from ....kernels import ops
from ....kernels.measure.compare import Case, Measured, measure
from ....kernels.measure.machine import Machine
from ....kernels.measure.products import BF16, KINDS, PLAIN, product_case
from ....kernels.measure.rows import Heads, attention_case, norm_case, silu_case
from ....runtime.devices import refuse_cuda
from ....runtime.ranks.launcher import cores
from ..options.common import CpuDevice, Json, Threads
from ..output import console, print_json, progress_bar

SHAPES = "8960x1536,1536x8960,5120x13696,13696x5120"
ROWS = "1,16,64,512"
CONTEXTS = (512, 4096)
MOST_SEQUENCES = 64
COLUMNS = {
    "rows": 4,
    "us": 5,
    "GB/s": 5,
    "mem": 4,
    "GF/s": 4,
    "peak": 4,
    "loop": 4,
    "torch": 5,
    "bf16": 5,
}
Make = Callable[[], Case]


def kernels(
    shapes: Annotated[
        str,
        typer.Option(
            help="N x K of linear layers, as 8960x1536,... (default: "
            "8960x1536,1536x8960 and 5120x13696,13696x5120).",
            show_default=False,
        ),
    ] = SHAPES,
    rows: Annotated[str, typer.Option(help="Tokens of a step, as 1,16,...")] = ROWS,
    kinds: Annotated[
        str,
        typer.Option(
            help=f"Weights of linear layers (default: all): {', '.join(KINDS)}.",
            show_default=False,
        ),
    ] = ",".join(KINDS),
    others: Annotated[
        bool, typer.Option("--others/--no-others", help="Norm, activation and attention as well.")
    ] = True,
    rounds: Annotated[int, typer.Option(help="Measurements of each, in turns.", min=1)] = 7,
    threads: Threads = 0,
    device: CpuDevice = "auto",
    as_json: Json = False,
) -> None:
    """Time every op beside what memory and registers give and beside torch, in one run."""
    refuse_cuda(device, "isobit bench kernels", "isobit gpu check measures linear layers on GPUs")
    makers = _products(_shapes(shapes), _numbers("--rows", rows), _kinds(kinds))
    if others:
        makers += _others(_numbers("--rows", rows))
    count = threads or cores()
    ops.set_threads(count)
    torch.set_num_threads(count)
    machine, found = Machine(), []
    with progress_bar("measuring") as progress:
        task = progress.task_ids[0]
        progress.update(task, total=len(makers))
        for make in makers:
            found.append(measure(make(), machine, count, rounds))
            progress.advance(task)
    if as_json:
        rows_found = [dataclasses.asdict(one) for one in found]
        print_json({"kernels": ops.backend(), "threads": count, "rows": rows_found})
    else:
        _print(found, count)


def _products(shapes: list[tuple[int, int]], rows: list[int], kinds: list[str]) -> list[Make]:
    return [
        lambda kind=kind, n=n, k=k, m=m: product_case(kind, n, k, m)
        for kind in kinds
        for n, k in shapes
        for m in rows
    ]


def _others(rows: list[int]) -> list[Make]:
    makers: list[Make] = [lambda m=m: norm_case(5120, m) for m in rows]
    makers += [lambda m=m: silu_case(13696, m) for m in rows]
    makers += [
        lambda m=m, c=c: attention_case(Heads(), m, c)
        for c in CONTEXTS
        for m in rows
        if m <= MOST_SEQUENCES
    ]
    return makers + [lambda m=m: attention_case(Heads(), m, 0) for m in rows if m > MOST_SEQUENCES]


def _numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    if wrong := [part for part in parts if not part.strip().isdigit() or int(part) == 0]:
        raise InputError("E-USAGE", f"{option} {text!r}: {', '.join(map(repr, wrong))} is no count")
    return [int(part) for part in parts]


def _shapes(text: str) -> list[tuple[int, int]]:
    shapes = []
    for part in text.split(","):
        n, _, k = part.partition("x")
        if not (n.isdigit() and k.isdigit() and int(n) and int(k)) or int(k) % 128:
            raise InputError(
                "E-USAGE", f"--shapes {part!r}: expected N x K as 8960x1536, K a multiple of 128"
            )
        shapes.append((int(n), int(k)))
    return shapes


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise InputError("E-USAGE", f"--kinds {', '.join(wrong)}: expected {', '.join(KINDS)}")
    return kinds


def _print(found: list[Measured], threads: int) -> None:
    title = f"{threads} threads, {ops.backend()['isa']}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("op")
    table.add_column("N x K")
    for name, width in COLUMNS.items():
        table.add_column(name, justify="right", min_width=width)
    last = None
    for one in found:
        if last is not None and one.op != last:
            table.add_section()
        last = one.op
        table.add_row(
            one.op,
            one.shape,
            str(one.rows),
            f"{one.us:.0f}",
            f"{one.gb_s:.1f}",
            f"{one.bandwidth_share:.2f}",
            f"{one.gflop_s:.0f}",
            f"{one.peak_share:.2f}",
            _ratio(one, PLAIN),
            _ratio(one, *(name for name in one.times_faster if name not in (PLAIN, BF16))),
            _ratio(one, BF16),
        )
    console.print(table)
    console.print(
        "mem, peak: over what memory and registers gave in the same rounds. loop, torch, "
        f"bf16: times faster than {PLAIN}, torch's kernel for the same, and {BF16}",
        style="dim",
    )


def _ratio(one: Measured, *names: str) -> str:
    return ", ".join(f"{one.times_faster[name]:.2f}" for name in names if name in one.times_faster)
