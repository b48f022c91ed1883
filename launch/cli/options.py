"""Options that several commands share, under the names people know from vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from isobit.errors import InputError

from ...runtime.collectives.interface import MODES, Mode
from ...runtime.devices import CPU
from ...runtime.progress import watched_by
from ...runtime.ranks.launcher import Launcher, cores
from ...runtime.settings.engine import LoadSettings
from ..placing import LauncherName, cluster_address, placed
from .output import bytes_bar, errors

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
    str | None,
    typer.Option(help="Place ranks on this Ray cluster: auto or HOST:PORT; else RAY_ADDRESS is."),
]
Threads = Annotated[int, typer.Option(help="CPU threads per rank; 0 shares the cores evenly.")]

MaxModelLen = Annotated[
    int | None,
    typer.Option(
        "--max-model-len",
        help="Most tokens of a sequence, prompt and answer together; the model's most if absent. "
        "Rotary factors that depend on a length (longrope) are chosen by it.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto (cuda where isobit gpu check has passed, else cpu), cpu, cuda, or a GPU for "
        "each rank: cuda:0,cuda:0 (as plain processes).",
    ),
]
CpuDevice = Annotated[
    str, typer.Option("--device", help="auto or cpu: this command runs on CPUs alone.")
]
EnforceEager = Annotated[
    bool, typer.Option("--enforce-eager", help="On CUDA: decode without CUDA graphs.")
]
CardShare = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory-utilization", help="On CUDA: share of a card to use; 0.9 unless told."
    ),
]
AllReduce = Annotated[
    str,
    typer.Option(
        help="How ranks add up: custom (shared memory), hierarchical (custom inside each host, "
        "gather between hosts), gather, library (not invariant), or auto."
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
    if disable_custom and mode in ("custom", "hierarchical"):
        raise InputError("E-USAGE", f"--all-reduce {mode} and --disable-custom-all-reduce exclude")
    if mode not in MODES:
        raise InputError("E-COLL-MODE", f"--all-reduce {mode!r}: expected {', '.join(MODES)}")
    return "gather" if disable_custom and mode == "auto" else mode  # pyright: ignore[reportReturnType]


class LayoutName(StrEnum):
    PAD = "pad"
    RAGGED = "ragged"


Layout = Annotated[
    LayoutName, typer.Option(help="pad: equal atoms. ragged: no padding, uneven atoms.")
]
LauncherOption = Annotated[
    LauncherName,
    typer.Option(
        "--launcher",
        help="local: ranks are plain processes of this host. ray: a Ray places them, a private one "
        "without an address. auto: local where all fit this host and no Ray cluster is named.",
    ),
]


class ModelFilesName(StrEnum):
    AUTO = "auto"
    SAME_PATH = "same-path"
    HEAD = "head"
    HUB = "hub"


ModelFilesOption = Annotated[
    ModelFilesName,
    typer.Option(
        "--model-files",
        help="What a host does that lacks the files at MODEL's path. same-path: it is an error. "
        "head: get them from this host. hub: download them. auto: hub for an id, else same-path.",
    ),
]

LauncherChoice = Annotated[
    LauncherName | None,
    typer.Option("--launcher", help="Who places several ranks: local, ray or auto (default)."),
]


class LoadFormat(StrEnum):
    AUTO = "auto"
    DUMMY = "dummy"


LoadFormatOption = Annotated[
    LoadFormat,
    typer.Option(
        "--load-format", help="dummy: random weights of the config's shape; no tokenizer is needed."
    ),
]
Quantization = Annotated[
    str | None, typer.Option(help="Assume int4 or int8 when config.json names none.")
]
GroupSize = Annotated[
    int | None,
    typer.Option(help="Group size to assume, with --quantization: 128 unless told otherwise."),
]
DEFAULT_GROUP = 128


def assumed_group_size(quantization: str | None, group_size: int | None) -> int:
    """The group size to assume; raises InputError E-USAGE for one that would be ignored."""
    if quantization is None and group_size is not None:
        raise InputError("E-USAGE", "--group-size goes with --quantization int4 or int8")
    return DEFAULT_GROUP if group_size is None else group_size


def load_settings(
    load_format: LoadFormat,
    quantization: str | None,
    group_size: int | None,
    verify_load: bool = False,
) -> LoadSettings:
    """The settings of loading; raises InputError E-USAGE for options that contradict each other."""
    size = assumed_group_size(quantization, group_size)
    if load_format is LoadFormat.AUTO and quantization is not None:
        raise InputError(
            "E-USAGE",
            f"--quantization {quantization} goes with --load-format dummy; "
            "isobit quantize makes a quantized checkpoint",
        )
    if load_format is LoadFormat.DUMMY and verify_load:
        raise InputError(
            "E-USAGE", "--verify-load: --load-format dummy has no file to be compared with"
        )
    return LoadSettings(format=load_format.value, quantization=quantization, group_size=size)


@contextmanager
def launchers(
    name: LauncherName, ray_address: str | None, most_ranks: int, threads: int, device: str = CPU
) -> Iterator[Callable[[], Launcher]]:
    """Yield a maker of launchers of ranks on `device`; a private Ray lives as long as the block.

    Warns when `threads` of each of `most_ranks` ranks are more than this machine has cores.
    """
    if cluster_address(name, ray_address) is None and most_ranks * threads > cores():
        ranks = "1 rank" if most_ranks == 1 else f"{most_ranks} ranks"
        errors.print(
            f"[yellow]warning[/] {ranks} with --threads {threads}: {most_ranks * threads} threads "
            f"on {cores()} cores wait for each other; --threads 0 shares the cores evenly",
            soft_wrap=True,
        )
    with watched_by(bytes_bar), placed(name, ray_address, most_ranks, device) as new_launcher:
        yield new_launcher


def parse_ids(text: str) -> list[int]:
    """Parse "1,2,3"; raises InputError E-PROMPT."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            "E-PROMPT", f"--prompt-ids {text!r}: expected integers between commas, as in 1,2,3"
        ) from None
