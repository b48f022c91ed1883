"""`isobit plan`: how a model is cut, from config.json and safetensors headers alone."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich.table import Table

from ...kernels.errors import InputError
from ...shard.checkpoint import has_weights, open_checkpoint
from ...shard.plan import PlanSettings, ShardPlan, make_plan
from ...shard.quantization import CHANNEL, assumed_quantization
from ...shard.spec import ModelSpec, read_spec
from ...shard.validate import check_checkpoint, stored_intermediate_size
from ..models import model_folder
from .options import Atoms, Degree, Json, Layout, LayoutName, Model
from .output import console, print_json


def plan(
    model: Model,
    degree: Degree = 1,
    atoms: Atoms = 8,
    layout: Layout = LayoutName.PAD,
    quantization: Annotated[
        str | None, typer.Option(help="Assume int4 or int8 when config.json names none.")
    ] = None,
    group_size: Annotated[
        int, typer.Option(help="Group size to assume, with --quantization.")
    ] = 128,
    as_json: Json = False,
) -> None:
    """Show how a model is cut and padded for a number of ranks."""
    folder = model_folder(model, weights=False)
    spec = read_spec(folder)
    if quantization is not None:
        if spec.quantization is not None:
            raise InputError(
                "E-USAGE",
                f"--quantization {quantization}: config.json already says "
                f"{spec.quantization.method}; leave the option out",
            )
        assumed = assumed_quantization(quantization, group_size)
        spec = dataclasses.replace(spec, quantization=assumed)
    settings = PlanSettings(degree=degree, atoms=atoms, layout=layout.value)
    if has_weights(folder) and quantization is None:
        checkpoint = open_checkpoint(folder)
        made = make_plan(spec, settings, stored_intermediate_size(checkpoint))
        check_checkpoint(checkpoint, spec)
    else:
        made = make_plan(spec, settings)
    if as_json:
        print_json(made.report())
    else:
        print_plan(spec, made)


def print_plan(spec: ModelSpec, made: ShardPlan) -> None:
    """Show a plan as a table."""
    table = Table(title=f"{_model_name(spec)}  ·  tp {made.degree}", title_justify="left")
    for heading in ("dimension", "true", "padded", "unit"):
        table.add_column(heading, justify="left" if heading == "dimension" else "right")
    table.add_column(f"{made.atoms} atoms")
    table.add_column("per rank")
    report = made.report()
    for name, dimension in report["dims"].items():
        grew = dimension["padded"] != dimension["true"]
        table.add_row(
            name,
            str(dimension["true"]),
            f"[bold]{dimension['padded']}[/]" if grew else str(dimension["padded"]),
            str(dimension["unit"]),
            _runs(dimension["atom_sizes"]),
            " ".join(map(str, dimension["per_rank"])),
        )
    console.print(table)
    console.print(_note(report), style="dim")


def _model_name(spec: ModelSpec) -> str:
    scheme = spec.quantization.rules[0][1] if spec.quantization else None
    weights = spec.dtype
    if scheme is not None:
        width = "per channel" if scheme.group_size == CHANNEL else f"group {scheme.group_size}"
        weights = f"int{scheme.bits} {width}"
    return f"{spec.family}, {spec.layers} layers, hidden {spec.hidden_size}, {weights}"


def _runs(sizes: list[int]) -> str:
    if len(set(sizes)) == 1:
        return f"{len(sizes)} x {sizes[0]}"
    return " ".join(map(str, sizes))


def _note(report: dict[str, Any]) -> str:
    idle = report["dims"]["heads"]["per_rank"].count(0)
    note = f"layout {report['layout']}, plan {report['hash']}"
    if idle:
        note += f"; {idle} ranks own no attention head and add exact zeros there"
    return note
