"""Collectives as parts of a recorded program: compiled code where it exists, else Python."""

from __future__ import annotations

from ...kernels.program import AnyProgram, Buffer, Program
from .interface import Collectives
from .shared import SharedCollectives


def record_all_reduce(
    program: AnyProgram, collectives: Collectives, nodes: Buffer, out: Buffer, site: str
) -> None:
    """Sum nodes float32 [S, T, N], a rank's complete subtrees, into out [T, N]."""
    if not isinstance(program, Program):
        program.gpu.collective(
            program,
            lambda given, made: collectives.all_reduce(given, made, site),
            nodes,
            out,
            planes=True,
            capturable=collectives.capturable,
        )
        return
    if isinstance(collectives, SharedCollectives):
        native = collectives.native_all_reduce(out.width, site)
        program.external(native, nodes, out, collectives.raise_fault)
        return

    program.call(
        lambda: collectives.all_reduce(program.planes_of(nodes), program.rows_of(out), site)
    )


def record_all_gather(
    program: AnyProgram, collectives: Collectives, buffer: Buffer, out: Buffer, site: str
) -> None:
    """Gather the rows of all ranks' buffers [T, W] into out [degree, T, W]."""
    if not isinstance(program, Program):
        program.gpu.collective(
            program,
            lambda given, made: collectives.all_gather(given, made, site),
            buffer,
            out,
            planes=False,
            capturable=collectives.capturable,
        )
        return
    if isinstance(collectives, SharedCollectives):
        native = collectives.native_all_gather(buffer.row_bytes, site)
        program.external(native, buffer, out, collectives.raise_fault)
        return
    program.call(
        lambda: collectives.all_gather(program.rows_of(buffer), program.rows_of(out), site)
    )
