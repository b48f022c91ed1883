"""Options that several commands share, under the names people know from vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from ...kernels.errors import InputError
from ...runtime.launcher import Launcher, LocalLauncher
from ..ray_cluster import RayLauncher, ray_session

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, or a Hugging Face id.")
]
Degree = Annotated[
    int,
    typer.Option("--tensor-parallel-size", "-tp", help="Number of ranks that share the model."),
]
Atoms = Annotated[int, typer.Option(help="Pieces that every sharded dimension is cut into.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Dtype = Annotated[str, typer.Option(help="auto (the model's), bfloat16, float16 or float32.")]
RayAddress = Annotated[
    str | None, typer.Option(help="An existing Ray cluster; without it a private one is started.")
]
Threads = Annotated[int, typer.Option(help="CPU threads per rank; 0 shares the cores evenly.")]

Check = Annotated[
    str,
    typer.Option(
        help="Ranks against each other: step (every step), full (every site), or off.",
    ),
]
VerifyLoad = Annotated[
    bool,
    typer.Option("--verify-load", help="Compare the loaded shards with the file, all of it."),
]


class LayoutName(StrEnum):
    PAD = "pad"
    RAGGED = "ragged"


class LauncherName(StrEnum):
    RAY = "ray"
    LOCAL = "local"


Layout = Annotated[
    LayoutName, typer.Option(help="pad: equal atoms. ragged: no padding, uneven atoms.")
]
LauncherOption = Annotated[
    LauncherName, typer.Option("--launcher", help="Who places ranks: Ray, or plain processes.")
]


@contextmanager
def launchers(
    name: LauncherName, ray_address: str | None, most_ranks: int
) -> Iterator[Callable[[], Launcher]]:
    """Yield a maker of launchers; a private Ray lives as long as the block."""
    if name is LauncherName.LOCAL:
        if ray_address is not None:
            raise InputError("E-USAGE", "--ray-address has no meaning with --launcher local")
        yield LocalLauncher
        return
    with ray_session(ray_address, most_ranks):
        yield RayLauncher


def parse_ids(text: str) -> list[int]:
    """Parse "1,2,3"; raises InputError E-PROMPT."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            "E-PROMPT", f"--prompt-ids {text!r}: expected integers between commas, as in 1,2,3"
        ) from None
