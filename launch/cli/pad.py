"""`isobit pad`: a padded checkpoint that any engine can load."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ...shard.pad import PadSettings, pad_folder
from ..models import model_folder
from ..printable import human_bytes
from .options.common import Atoms, Json, Model
from .output import console, print_json, progress_bar


def pad(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    atoms: Atoms = 8,
    intermediate_size: Annotated[
        int, typer.Option(help="Pad to this size; 0 takes what the plan pads to.")
    ] = 0,
    vocab: Annotated[
        bool,
        typer.Option(
            "--vocab", help="Pad the vocabulary too. Other engines may then sample padded tokens."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a copy with a padded intermediate dimension, in the same format."""
    settings = PadSettings(atoms=atoms, intermediate_size=intermediate_size, vocab=vocab)
    with progress_bar("padding") as bar:
        report = pad_folder(
            model_folder(model),
            out,
            settings,
            lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    if as_json:
        print_json({"out": str(out), **dataclasses.asdict(report)})
        return
    before, after = report.intermediate
    console.print(
        f"{out}: intermediate_size {before} -> {after}"
        + (f", vocab_size {report.vocab[0]} -> {report.vocab[1]}" if vocab else "")
        + f"; {human_bytes(report.written_bytes)}"
    )
