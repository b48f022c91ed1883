"""`isobit gpu`: does everything that isobit does on a GPU work on the GPUs of this machine?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from isobit.errors import InputError

from ..gpu_check.check import CheckSettings, check_gpus, out_file
from ..gpu_check.ladder import Rung
from ..gpu_check.page import GENERATOR, write_page
from ..gpu_check.runner import Result
from ..pages.own_page import check_page
from .options.common import Json
from .output import console, print_json, progress_bar

gpu = typer.Typer(name="gpu", help="The GPUs of this machine: check them.", no_args_is_help=True)
STYLES = {
    "passed": "[green]passed[/] ",
    "failed": "[bold red]failed[/] ",
    "not run": "[dim]not run[/]",
}


@gpu.callback()
def group() -> None:
    """The GPUs of this machine: check them."""


@gpu.command()
def check(
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Run every step on a simulated GPU; none is needed.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="Only these steps: build,row-bits. auto still waits for all.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="What all steps of one GPU may take.")] = 6.0,
    html: Annotated[
        Path | None, typer.Option(help="Write the report as one HTML page, for people.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Append each result as a line of JSON as soon as it is known."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the ladder: kernels, a small model, graphs, sums of ranks, on every GPU and pair.

    Exit status 1 when a step fails, 2 without a GPU. What passes lets --device auto use the GPUs.
    """
    if minutes <= 0:
        raise InputError("E-USAGE", f"--minutes {minutes:g}: expected more than 0")
    if html is not None:
        check_page(html, GENERATOR)
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError("E-OUT-PARENT", f"{out.absolute().parent}: no such folder")
    settings = CheckSettings(
        rehearsal=rehearse,
        only=() if only is None else tuple(name.strip() for name in only.split(",")),
        minutes=minutes,
    )
    with out_file(out) or contextlib.nullcontext() as journal, progress_bar("starting") as bar:
        task = bar.task_ids[0]

        def plan(rungs: Sequence[Rung]) -> None:
            bar.update(task, total=len(rungs), completed=0)

        def start(rung: Rung) -> None:
            bar.update(task, description=f"{rung.step.name} on {rung.place}")

        def show(result: Result) -> None:
            bar.advance(task)
            if not as_json:
                bar.stop()  # One line of a terminal is not for both.
                _print_result(result)
                bar.start()

        report = check_gpus(settings, journal, plan, start, show)
    if html is not None:
        write_page(html, report)
    if as_json:
        print_json(report)
    else:
        _print_verdict(report)
    raise typer.Exit(0 if report["verdict"]["passed"] else 1)


def _print_result(result: Result) -> None:
    console.print(STYLES[result["status"]], end=" ")
    line = f"{result['title']:<47} {result['place']:<15} {result['seconds']:5.1f} s"
    console.print(line, markup=False, soft_wrap=True)
    if result["what"]:
        how = f"{result['how']}: " if result["how"] else ""
        _print_below(f"{how}{result['what']}")


def _print_below(text: str) -> None:
    """What belongs to the line above, as wide as the console."""
    console.print(Padding(Text(text, style="dim"), (0, 0, 0, 8)))


def _print_verdict(report: dict[str, Any]) -> None:
    judged, counts = report["verdict"], report["verdict"]["counts"]
    console.print()
    for each in judged["advice"]:
        console.print(f"{each['place']}: {each['use']}", markup=False, soft_wrap=True)
        _print_below(each["why"])
    said = "[bold green]passed[/]" if judged["passed"] else "[bold red]failed[/]"
    console.print(
        f"{said}  {counts['passed']} passed, {counts['failed']} failed, {counts['not run']} not run"
    )
    if report["rehearsal"]:
        note = "a rehearsal: fewer rows, columns and replays, and nothing is said of a real GPU"
        console.print(note, style="dim")
    if report["record"]:
        console.print(f"--device auto uses these GPUs from now on: {report['record']}", style="dim")
