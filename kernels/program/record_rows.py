"""Recording what moves rows about: embeddings of sharded tables, sampled rows, pieces of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checks import NUMBERS, Checks
from ..gpu.weight import GpuWeight
from ..step.buffer import Buffer
from ..weights.native_weight import address
from ..weights.weight import MIDDLE, PackedWeight
from .program import AnyProgram, Program


def embed(
    program: AnyProgram,
    table: torch.Tensor | PackedWeight | GpuWeight,
    first: int,
    count: int,
    out: Buffer,
) -> None:
    """Rows of the step's tokens from a part `[count, W]` of a table, which begins at token `first`.

    A dense packed weight serves as the table of a tied embedding. Rows of `out` `[T, W]` whose
    tokens lie elsewhere keep what they held.
    """
    checks = Checks("embed", program.device)
    if not isinstance(table, torch.Tensor):
        data, rows, width = table.data, table.n, table.k
        checks.that(table.kind not in MIDDLE, f"an embedding must be dense, not {table.kind}")
    else:
        data, (rows, width) = table, table.shape
        checks.tensor("table", table, (None, None), out.dtype)
    checks.that(data.dtype == out.dtype, f"the table is {data.dtype}, out {out.dtype}")
    checks.that(count <= rows, f"{count} tokens of a table of {rows}")
    checks.that(width == out.width, f"the table is {width} wide, out {out.width}")
    checks.done()
    if not isinstance(program, Program):
        program.gpu.embed(program, table, first, count, out)
        return
    packed = table if isinstance(table, PackedWeight) else None
    op = program.native.embed(
        data.data_ptr(),
        NUMBERS[data.dtype],
        packed is not None,
        0 if packed is None else address(packed.gather),
        0 if packed is None else packed.packed_k,
        first,
        count,
        width,
        out.id,
    )
    program.recorded(op, table)


def owned_rows(program: AnyProgram, gathered: Buffer, ends: Sequence[int], out: Buffer) -> None:
    """From gathered `[ranks, T, W]` each token's row of the rank that owns it, fp32 `[T, W]`.

    A rank's tokens end before ends[rank].
    """
    checks = Checks("owned_rows", program.device)
    checks.that(gathered.planes == len(ends), f"{gathered.planes} planes, {len(ends)} ranks")
    fits = out.dtype == torch.float32 and out.width == gathered.width
    checks.that(fits, f"out is {out.dtype} [*, {out.width}], gathered [*, {gathered.width}]")
    checks.done()
    if not isinstance(program, Program):
        program.gpu.owned_rows(program, gathered, ends, out)
        return
    op = program.native.owned_rows(
        gathered.id, NUMBERS[gathered.dtype], list(ends), out.width, out.id
    )
    program.recorded(op)


def join_columns(program: AnyProgram, gathered: Buffer, sizes: Sequence[int], out: Buffer) -> None:
    """From gathered fp32 `[ranks, T, M]` the first sizes[rank] columns of each, side by side.

    What exceeds the width of out `[T, W]` is padding.
    """
    checks = Checks("join_columns", program.device)
    checks.that(gathered.planes == len(sizes), f"{gathered.planes} planes, {len(sizes)} ranks")
    fits = max(sizes) <= gathered.width and sum(sizes) >= out.width
    checks.that(fits, f"sizes {list(sizes)} of [*, {gathered.width}] into [*, {out.width}]")
    checks.that(gathered.dtype == out.dtype == torch.float32, f"{gathered.dtype} to {out.dtype}")
    checks.done()
    if not isinstance(program, Program):
        program.gpu.join_columns(program, gathered, sizes, out)
        return
    op = program.native.join_columns(gathered.id, list(sizes), gathered.width, out.width, out.id)
    program.recorded(op)


def sampled_rows(program: AnyProgram, x: Buffer, out: Buffer) -> None:
    """The sampled rows of x `[T, W]`: out `[L, W]`, of the same dtype."""
    checks = Checks("sampled_rows", program.device)
    checks.that(out.sampled and not x.sampled, "x has a step's rows, out its sampled rows")
    checks.that((x.dtype, x.width) == (out.dtype, out.width), "x and out differ in dtype or width")
    checks.done()
    if not isinstance(program, Program):
        program.gpu.sampled_rows(program, x, out)
        return
    program.recorded(program.native.sampled_rows(x.id, x.row_bytes, out.id))


def last_row(program: AnyProgram, x: Buffer, out: torch.Tensor) -> None:
    """The last row of x `[T, W]`: out `[W]`, of the same dtype."""
    checks = Checks("last_row", program.device)
    checks.tensor("out", out, (x.width,), x.dtype)
    checks.done()
    if not isinstance(program, Program):
        program.gpu.last_row(program, x, out)
        return
    program.recorded(program.native.last_row(x.id, x.row_bytes, out.data_ptr()), out)


def read_out(
    program: AnyProgram, hidden: Buffer, normed: torch.Tensor, last: Buffer, logits: Buffer
) -> None:
    """Say what is going to be read of every step: hidden fp32 `[T, W]`, normed `[N, W]`, last
    `[L, W]`, logits fp32 `[L, V]`. A device finds out on the way what a host reads afterwards.
    """
    checks = Checks("read_out", program.device)
    checks.tensor("normed", normed, (None, hidden.width), last.dtype)
    checks.that(last.width == hidden.width, f"last is {last.width} wide, hidden {hidden.width}")
    checks.that(hidden.dtype == logits.dtype == torch.float32, f"{hidden.dtype}, {logits.dtype}")
    checks.done()
    if not isinstance(program, Program):
        program.gpu.read_out(program, hidden, normed, last, logits)
