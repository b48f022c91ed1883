"""Collectives as parts of a recorded program: compiled code where it exists, else Python."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...kernels.program import AnyProgram, Buffer, External, Program
from .interface import Collectives
from .shared import SharedCollectives


def record_all_reduce(
    program: AnyProgram, collectives: Collectives, nodes: Buffer, out: Buffer, site: str
) -> None:
    """Sum nodes float32 [S, T, N], a rank's complete subtrees, into out [T, N]."""
    _record(
        program,
        collectives,
        nodes,
        out,
        call=lambda given, made: collectives.all_reduce(given, made, site),
        native=lambda shared: shared.native_all_reduce(out.width, site),
        planes=True,
    )


def record_all_gather(
    program: AnyProgram, collectives: Collectives, buffer: Buffer, out: Buffer, site: str
) -> None:
    """Gather the rows of all ranks' buffers [T, W] into out [degree, T, W]."""
    _record(
        program,
        collectives,
        buffer,
        out,
        call=lambda given, made: collectives.all_gather(given, made, site),
        native=lambda shared: shared.native_all_gather(buffer.row_bytes, site),
        planes=False,
    )


def _record(
    program: AnyProgram,
    collectives: Collectives,
    x: Buffer,
    out: Buffer,
    *,
    call: Callable[[torch.Tensor, torch.Tensor], None],
    native: Callable[[SharedCollectives], External],
    planes: bool,
) -> None:
    """`planes`: x has a dimension of planes, even of one."""
    if not isinstance(program, Program):
        capturable = collectives.capturable
        program.gpu.collective(program, call, x, out, planes=planes, capturable=capturable)
    elif isinstance(collectives, SharedCollectives):
        program.external(native(collectives), x, out, collectives.raise_fault)
    else:
        given = program.planes_of if planes else program.rows_of
        program.call(lambda: call(given(x), program.rows_of(out)))
