"""`isobit quantize`: a dense model folder in, a compressed-tensors folder out."""

from __future__ import annotations

import statistics
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ...shard.quantize.folder import QuantizeSettings, quantize_folder
from ..models import model_folder
from .options import Json, Model
from .output import console, human_bytes, print_json, progress_bar


class Scheme(StrEnum):
    INT4 = "int4"
    INT8 = "int8"


def quantize(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    scheme: Annotated[Scheme, typer.Option(help="Width of a weight.")] = Scheme.INT4,
    group_size: Annotated[
        int, typer.Option(help="Input features that share a scale; -1: one scale per output.")
    ] = 128,
    as_json: Json = False,
) -> None:
    """Quantize the weights of a model: round to nearest, scale from the largest magnitude."""
    settings = QuantizeSettings(bits=int(scheme.value[3:]), group_size=group_size)
    with progress_bar("quantizing") as bar:
        report = quantize_folder(
            model_folder(model),
            out,
            settings,
            lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    worst = min(report.sqnr_db, key=lambda name: report.sqnr_db[name])
    summary = {
        "out": str(out),
        "scheme": scheme.value,
        "group_size": group_size,
        "quantized": len(report.sqnr_db),
        "source_bytes": report.source_bytes,
        "written_bytes": report.written_bytes,
        "sqnr_db": {
            "median": round(statistics.median(report.sqnr_db.values()), 2),
            "worst": round(report.sqnr_db[worst], 2),
            "worst_module": worst,
        },
    }
    if as_json:
        print_json(summary)
        return
    console.print(
        f"{out}: {len(report.sqnr_db)} weights to {scheme.value}, group size {group_size}; "
        f"{human_bytes(report.source_bytes)} -> {human_bytes(report.written_bytes)}"
    )
    console.print(
        f"signal to quantization noise: median {summary['sqnr_db']['median']} dB, "
        f"worst {summary['sqnr_db']['worst']} dB ({worst})"
    )
