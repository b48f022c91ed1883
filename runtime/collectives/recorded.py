"""Collectives as parts of a recorded program: compiled code where it exists, else Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from ...kernels.program.program import AnyProgram, External, Program
from ...kernels.step.buffer import Buffer
from .interface import Collectives, DeviceCollectives
from .shared import SharedCollectives

if TYPE_CHECKING:
    from ...kernels.gpu.program import GpuProgram

Call = Callable[[torch.Tensor, torch.Tensor], None]


def record_all_reduce(
    program: AnyProgram, collectives: Collectives, nodes: Buffer, out: Buffer, site: str
) -> None:
    """Sum nodes float32 [S, T, N], a rank's complete subtrees, into out [T, N]."""
    _record(
        program,
        collectives,
        nodes,
        out,
        name="all_reduce",
        site=site,
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
        name="all_gather",
        site=site,
        native=lambda shared: shared.native_all_gather(buffer.row_bytes, site),
        planes=False,
    )


def _record(
    program: AnyProgram,
    collectives: Collectives,
    x: Buffer,
    out: Buffer,
    *,
    name: str,
    site: str,
    native: Callable[[SharedCollectives], External],
    planes: bool,
) -> None:
    """`planes`: x has a dimension of planes, even of one."""

    def call(given: torch.Tensor, made: torch.Tensor) -> None:
        getattr(collectives, name)(given, made, site)

    if not isinstance(program, Program):
        _record_on_device(program, collectives, call, x, out, name=name, site=site, planes=planes)
    elif isinstance(collectives, SharedCollectives):
        program.external(native(collectives), x, out, collectives.raise_fault)
    else:
        given = program.planes_of if planes else program.rows_of
        program.call(lambda: call(given(x), program.rows_of(out)))


def _record_on_device(
    program: GpuProgram,
    collectives: Collectives,
    call: Call,
    x: Buffer,
    out: Buffer,
    *,
    name: str,
    site: str,
    planes: bool,
) -> None:
    capturable = collectives.capturable
    if not isinstance(collectives, DeviceCollectives):
        program.gpu.collective(program, call, x, out, planes=planes, capturable=capturable)
        return

    def first(given: torch.Tensor, made: torch.Tensor) -> None:
        with collectives.patiently():
            call(given, made)

    launches = partial(getattr(collectives, f"{name}_launches"), site=site)
    program.gpu.collective(
        program, call, x, out, planes=planes, capturable=capturable, first=first, launches=launches
    )
