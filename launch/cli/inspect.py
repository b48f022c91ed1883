"""`isobit inspect`: is this checkpoint healthy? Every problem in one run."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...shard.inspect import Finding, Report, inspect_folder
from ..models import model_folder
from ..printable import human_bytes
from .options.common import Json, Model
from .output import bytes_bar, console, print_json

COLOURS = {
    "healthy": "green",
    "suspicious": "yellow",
    "not-supported": "magenta",
    "misused": "magenta",
    "damaged": "red",
}
REFUSED = ("damaged", "misused", "not-supported")
MARKS = {"error": "[bold red]error[/]", "warning": "[yellow]warning[/]", "note": "[cyan]note[/]"}
ODD_SCALES = {
    "zeros": "zero",
    "negative": "negative",
    "subnormal_fp16": "subnormal\nin fp16",
    "nan": "NaN",
    "infinite": "infinite",
}
MOST_ROWS = 6
WORTH_TIMING = 64 << 20
LEGEND = (
    "Codes at the ends: the share that is 0 or the largest code. Suspicious above 2 / group + 10 % "
    "(a step 1.5 times too small), damaged above 2 / group + 40 %. A dead group holds one value "
    "throughout."
)


def inspect(
    model: Model,
    sha256: Annotated[bool, typer.Option("--sha256", help="Also hash every file.")] = False,
    as_json: Json = False,
) -> None:
    """Read a checkpoint once and list everything that is wrong with it.

    Exit status 1 when it is damaged, when files that are whole contradict each other (misused), or
    when it is right and not supported.
    """
    folder = model_folder(model)
    with bytes_bar("reading") as on_bytes:
        report = inspect_folder(folder, sha256=sha256, progress=on_bytes)
    if as_json:
        print_json(report.report())
    else:
        print_report(report)
    if report.verdict in REFUSED:
        raise typer.Exit(1)


def print_report(report: Report) -> None:
    """The verdict, the findings, then what the checkpoint is."""
    counts = [
        f"{count} {severity}{'s' if count > 1 else ''}"
        for severity in MARKS
        if (count := sum(finding.severity == severity for finding in report.findings))
    ]
    colour = COLOURS[report.verdict]
    console.print(
        f"[bold {colour}]{report.verdict.replace('-', ' ')}[/]  {escape(report.model)}"
        + (f"  [dim]{', '.join(counts)}[/]" if counts else ""),
        soft_wrap=True,
    )
    for finding in report.findings:
        _print_finding(finding)
    console.print()
    console.print(_facts(report))
    for table in (_scales(report), _damage(report)):
        if table is not None:
            console.print()
            console.print(table)
    if report.damage:
        console.print(LEGEND, style="dim")


def _print_finding(finding: Finding) -> None:
    console.print(
        f"\n{MARKS[finding.severity]} [bold]{finding.code}[/]  {escape(finding.where)}",
        soft_wrap=True,
    )
    console.print(Padding(Text(finding.what), (0, 0, 0, 2)))
    remedy = Table.grid()
    remedy.add_row("  [dim]→ [/]", Text(finding.remedy, style="dim"))
    console.print(remedy)


def _facts(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    form, tensors = report.format, report.tensors
    version = f" {form['version']}" if form["version"] else ""
    table.add_row("format", f"{form['method']}{version}")
    for scheme in form["schemes"]:
        table.add_row("", _scheme(scheme))
    table.add_row("evidence", "\n".join(form["evidence"]))
    dtypes = ", ".join(
        f"{name} {human_bytes(kind['bytes'])}"
        for name, kind in sorted(tensors["dtypes"].items(), key=lambda item: -item[1]["bytes"])
    )
    table.add_row(
        "tensors",
        f"{tensors['count']}, {human_bytes(tensors['bytes'])}" + (f": {dtypes}" if dtypes else ""),
    )
    for number, file in enumerate(report.files):
        if number == MOST_ROWS and "sha256" not in file:
            table.add_row("", f"and {len(report.files) - number} more files")
            break
        table.add_row("" if number else "files", f"{file['name']}  {human_bytes(file['bytes'])}")
        if "sha256" in file:
            table.add_row("", f"[dim]sha256 {file['sha256']}[/]")
    for scheme, histogram in report.zero_points.items():
        table.add_row("zero points", f"{scheme}: {_histogram(histogram)}")
    if report.g_idx:
        table.add_row("g_idx", _states(report.g_idx))
    if tensors["bytes"] > WORTH_TIMING:
        table.add_row("read at", f"{report.throughput_mb_s:.0f} MB/s")
    return table


def _scheme(scheme: dict[str, Any]) -> str:
    group = scheme["group_size"]
    width = "one scale per output" if group == -1 else f"group {group}"
    words = [f"{scheme['bits']}-bit", width, "symmetric" if scheme["symmetric"] else "asymmetric"]
    if scheme["act_order"]:
        words.append("act-order")
    if scheme["activation"] != "float":
        words.append(f"activations {scheme['activation']}")
    return f"{scheme['format']} {', '.join(words)}: {scheme['modules']} weights"


def _histogram(histogram: dict[str, int]) -> str:
    """The most frequent values; the rest in one word."""
    top = sorted(histogram.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{value} x {count}" for value, count in top[:6])
    return shown + (f", {len(top) - 6} other values" if len(top) > 6 else "")


def _states(families: dict[str, dict[str, int]]) -> str:
    """One state for all families, or the families of each state."""
    by_state: dict[str, list[str]] = {}
    for family, states in families.items():
        for state, count in states.items():
            part = "" if len(states) == 1 else f" ({count} of {sum(states.values())})"
            by_state.setdefault(state, []).append(family + part)
    if len(by_state) == 1:
        return f"{next(iter(by_state))} everywhere"
    return "; ".join(f"{state}: {', '.join(names)}" for state, names in by_state.items())


def _scales(report: Report) -> Table | None:
    families = report.scales["by_module"]
    if not families:
        return None
    table = Table(title="scales", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("weights")
    odd = [key for key in ODD_SCALES if report.scales[key]]
    for heading in ("min", "median", "max", *(ODD_SCALES[key] for key in odd)):
        table.add_column(heading, justify="right")
    for name, stats in families.items():
        table.add_row(
            f"{stats['tensors']} x {name}",
            *(_number(stats[key]) for key in ("min", "median", "max")),
            *(_count(stats[key]) for key in odd),
        )
    return table


def _damage(report: Report) -> Table | None:
    if not report.damage:
        return None
    shown = report.damage[:MOST_ROWS]
    table = Table(
        title=f"quantized weights, the worst {len(shown)} of {len(report.damage)}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
    )
    table.add_column("weight", overflow="fold")
    headings = ("codes at\nthe ends", "limit", "dead\ngroups", "dead\nrows", "scale max\n/ median")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in shown:
        dead = row["dead_groups"] + row["stuck_groups"]
        table.add_row(
            row["module"].removeprefix("model."),
            f"{row['saturated']:.1%}",
            f"{row['saturated_limit']:.1%}",
            _count(dead),
            _count(row["dead_rows"]),
            f"{row['scale_max_over_median']:.1f}",
            style="yellow" if row["badness"] > 1 else None,
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _count(count: int) -> str:
    return str(count) if count else "-"
