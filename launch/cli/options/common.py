"""Declarations that commands without an engine take as well."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from isobit.errors import InputError

from ....runtime.settings.engine import ASSUMED
from .panels import DEVICES, MODEL, OUTPUT, RANKS, SUMS

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, or a Hugging Face id.")
]
Degree = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size",
        "-tp",
        rich_help_panel=RANKS,
        help="Number of ranks that share the model.",
    ),
]
Atoms = Annotated[
    int,
    typer.Option(rich_help_panel=RANKS, help="Pieces that every sharded dimension is cut into."),
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object.")
]
Dtype = Annotated[
    str,
    typer.Option(
        rich_help_panel=MODEL,
        help="auto (the model's), bfloat16, float16 (half) or float32 (float).",
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        "--max-model-len",
        rich_help_panel=MODEL,
        help="Most tokens of a sequence, prompt and answer together (default: the model's most). "
        "Rotary factors that depend on a length (longrope) are chosen by it.",
    ),
]
Threads = Annotated[
    int,
    typer.Option(rich_help_panel=DEVICES, help="CPU threads per rank; 0 shares the cores evenly."),
]
CpuDevice = Annotated[
    str,
    typer.Option(
        "--device", rich_help_panel=DEVICES, help="auto or cpu: this command runs on CPUs alone."
    ),
]


class LayoutName(StrEnum):
    PAD = "pad"
    RAGGED = "ragged"


Layout = Annotated[
    LayoutName,
    typer.Option(rich_help_panel=RANKS, help="pad: equal atoms. ragged: no padding, uneven atoms."),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL,
        help="int4 or int8: what dummy weights are. With a checkpoint the method that config.json "
        "has to name (gptq, awq, compressed-tensors, ...), else it is an error.",
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MODEL,
        help="Group size of dummy weights, with --quantization int4 or int8 (default: 128).",
    ),
]
VerifyLoad = Annotated[
    bool,
    typer.Option(
        "--verify-load",
        rich_help_panel=SUMS,
        help="Compare the loaded shards with the file, all of it.",
    ),
]
DEFAULT_GROUP = 128


def assumed_group_size(quantization: str | None, group_size: int | None) -> int:
    """The group size to assume; raises InputError E-USAGE for one that would be ignored."""
    if quantization not in ASSUMED and group_size is not None:
        raise InputError("E-USAGE", "--group-size goes with --quantization int4 or int8")
    return DEFAULT_GROUP if group_size is None else group_size
