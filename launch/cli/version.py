"""`isobit --version`: what to write into a report."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Annotated

import typer

from isobit.errors import EnvironmentFault

from .output import console


def _show(asked: bool) -> None:
    if not asked:
        return
    from ...kernels import ops

    try:
        backend = ops.backend()
        kernels = f"{backend['device']} {backend['isa']}"
    except EnvironmentFault as fault:
        kernels = fault.code
    console.print(
        f"isobit {version_of('isobit')}, torch {version_of('torch')}, kernels {kernels}",
        soft_wrap=True,
    )
    raise typer.Exit


def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_show,
            help="Print the versions of isobit and torch and the kernels' instruction set.",
        ),
    ] = False,
) -> None:
    """Tensor-parallel runtime for quantized language models: the same bits at every size."""
    del version
