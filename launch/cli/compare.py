"""`isobit compare`: the first site where two traces part, and how far apart each site is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from isobit.errors import InputError

from ...runtime.trace.compare import SiteComparison, TraceComparison, compare_traces
from ...runtime.trace.distance import Place
from ...runtime.trace.folder import Trace, read_trace
from .options.common import Json
from .output import console, print_json, progress_bar

SHOWN = 40
ROOMY = 110
"""Columns of a terminal from which the ranks are shown as well."""


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A trace: the reference.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="A trace of the same prompts.")],
    rank_a: Annotated[int | None, typer.Option(help="Only what this rank of A recorded.")] = None,
    rank_b: Annotated[int | None, typer.Option(help="Only what this rank of B recorded.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Most relative error of a site, instead of equal bits or the default."),
    ] = None,
    every_site: Annotated[
        bool, typer.Option("--all", help="Show every site, also those that are equal.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Align two traces and name the first site where they part. Exit status 1 when they do."""
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise InputError("E-USAGE", f"--tolerance {tolerance}: expected 0 or more")
    with read_trace(a) as one, read_trace(b) as other, progress_bar("comparing") as bar:
        task = bar.task_ids[0]
        outcome = compare_traces(
            one,
            other,
            rank_a=rank_a,
            rank_b=rank_b,
            tolerance=tolerance,
            on_site=lambda site, of: bar.update(task, description=site, total=of, advance=1),
        )
        result = report(one, other, outcome)
    if as_json:
        print_json(result)
    else:
        _print(outcome, result, every_site)
    if outcome.verdict == "different":
        raise typer.Exit(1)


def report(a: Trace, b: Trace, outcome: TraceComparison) -> dict[str, Any]:
    """The outcome as `isobit compare --json` prints it; null stands for infinite or none."""
    return {
        "verdict": outcome.verdict,
        "a": _who(a),
        "b": _who(b),
        "bits_promised": not outcome.why_not,
        "why_not": outcome.why_not,
        "tolerance": outcome.tolerance,
        "parted": None if outcome.parted is None else _site(outcome.parted),
        "tokens_part": {str(request): at for request, at in outcome.tokens_part.items()},
        "sites": [_site(site) for site in outcome.sites],
        "not_compared": outcome.not_compared,
    }


def _who(trace: Trace) -> dict[str, Any]:
    index = trace.index
    return {
        "trace": str(trace.folder),
        "source": index.source,
        "model": index.model,
        "dtype": index.dtype,
        "tp": index.degree,
        "plan_hash": index.plan_hash,
    }


def _site(site: SiteComparison) -> dict[str, Any]:
    fields = {**dataclasses.asdict(site), "first": _place(site.first), "worst": _place(site.worst)}
    return {name: _number(value) for name, value in fields.items()}


def _place(place: Place | None) -> dict[str, Any] | None:
    if place is None:
        return None
    return {name: _number(value) for name, value in dataclasses.asdict(place).items()}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(outcome: TraceComparison, result: dict[str, Any], every_site: bool) -> None:
    for name in ("a", "b"):
        who = result[name]
        ranks = "1 rank" if who["tp"] == 1 else f"{who['tp']} ranks"
        console.print(
            f"{name}: {who['trace']}, {who['source']}, {who['dtype']}, {ranks}", markup=False
        )
    shown = [site for site in outcome.sites if every_site or not site.bit_equal]
    if shown:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("site", no_wrap=True)
        table.add_column("bits", no_wrap=True, min_width=4)
        for name in ("max diff", "rel err", "SQNR", "token", "column"):
            table.add_column(name, justify="right", no_wrap=True)
        roomy = console.width >= ROOMY
        if roomy:
            table.add_column("held by", no_wrap=True)
        for site in shown if every_site else shown[:SHOWN]:
            cells = _cells(site, outcome.tolerance)
            table.add_row(*(cells if roomy else cells[:-1]))
        console.print(table)
        what = "begins" if outcome.tolerance is None else "is greatest"
        console.print(f"token, column: where the difference {what}", style="dim")
    if not every_site and len(shown) > SHOWN:
        console.print(f"and {len(shown) - SHOWN} more sites; --all shows every one", style="dim")
    equal = len(outcome.sites) - len(shown)
    if not every_site and equal:
        console.print(f"{equal} of {len(outcome.sites)} sites are equal in every bit", style="dim")
    for request, at in outcome.tokens_part.items():
        console.print(
            f"request {request}: token {at} differs; what comes from it on was not compared"
        )
    if outcome.not_compared:
        console.print(f"{len(outcome.not_compared)} sites were not compared:", style="dim")
        for reason in dict.fromkeys(outcome.not_compared.values()):
            names = [name for name, why in outcome.not_compared.items() if why == reason]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            console.print(f"  {names[0]}{more}: {reason}", style="dim", markup=False)
    _print_verdict(outcome)


def _cells(site: SiteComparison, tolerance: float | None) -> list[str]:
    bits = "[green]same[/]" if site.bit_equal else "near" if site.within else "[bold red]off[/]"
    numbers = ["", "", ""]
    if site.max_abs is not None and site.relative_error is not None:
        sqnr = "" if site.sqnr_db is None else f"{site.sqnr_db:.1f}"
        numbers = [f"{site.max_abs:.3g}", f"{site.relative_error:.2g}", sqnr]
    if (place := _telling(site, tolerance)) is None:
        return [site.site, bits, *numbers, "", "", ""]
    return [site.site, bits, *numbers, str(place.position), str(place.column), _holder(place)]


def _telling(site: SiteComparison, tolerance: float | None) -> Place | None:
    """Where bits first differ if they must not, else where the difference is greatest."""
    return site.first if tolerance is None or site.worst is None else site.worst


def _holder(place: Place) -> str:
    return f"{place.part}, rank {place.rank}" + (" of a" if place.trace == "a" else "")


def _where(place: Place) -> str:
    request = f"request {place.request}, " if place.request else ""
    return f"{request}token {place.position}, column {place.column} ({_holder(place)})"


def _print_verdict(outcome: TraceComparison) -> None:
    if outcome.tolerance is not None:
        reason = "; ".join(outcome.why_not) or "a tolerance was asked for"
        console.print(
            f"relative error allowed: {outcome.tolerance:.3g}, since {reason}", soft_wrap=True
        )
    if outcome.parted is None:
        count = len(outcome.sites)
        what = "every bit is equal" if outcome.verdict == "equal" else "all are within tolerance"
        console.print(f"[bold green]{outcome.verdict}[/]: {count} sites, {what}")
        return
    site = outcome.parted
    place = _telling(site, outcome.tolerance)
    text = f"the traces part at [bold]{site.site}[/], step {site.first_bad_step}"
    if place is not None:
        text += f": {_where(place)}"
        if not math.isnan(place.a + place.b) or math.isnan(place.a) != math.isnan(place.b):
            text += f", {place.a:.9g} and {place.b:.9g}"
    console.print(f"[bold red]different[/]: {text}", soft_wrap=True)
