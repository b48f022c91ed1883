"""Options that several commands share, under the names people know from vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from ...kernels.errors import InputError
from ...runtime.collectives.interface import MODES, Mode
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

AllReduce = Annotated[
    str,
    typer.Option(
        help="How ranks add up: custom (shared memory), gather, library (not invariant), or auto."
    ),
]
DisableCustomAllReduce = Annotated[
    bool,
    typer.Option(
        "--disable-custom-all-reduce", help="Gather through the library, add up by the same tree."
    ),
]
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


def all_reduce_mode(mode: str, disable_custom: bool) -> Mode:
    """The mode that two options ask for; raises InputError when they contradict each other."""
    if disable_custom and mode == "custom":
        raise InputError("E-USAGE", "--all-reduce custom and --disable-custom-all-reduce exclude")
    if mode not in MODES:
        raise InputError("E-COLL-MODE", f"--all-reduce {mode!r}: expected {', '.join(MODES)}")
    return "gather" if disable_custom and mode == "auto" else mode  # pyright: ignore[reportReturnType]


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
