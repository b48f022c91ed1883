"""A diagnosis on the terminal: a line a check, then the verdict with its evidence."""

from __future__ import annotations

import time
from pathlib import Path

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from isobit.errors import InputError
from isobit.findings import Evidence, Finding

from ....runtime.doctor.diagnosis import Diagnosis
from ....runtime.doctor.findings import PLACE, CheckResult
from ...pages.doctor_page import write_page
from ..output import console, errors, print_json

MARKS = {
    "ok": "[green]✓[/]",
    "note": "[cyan]·[/]",
    "skipped": "[dim]-[/]",
    "warning": "[yellow]![/]",
    "error": "[bold red]✗[/]",
}
MOST_EVIDENCE = 4
LONGEST = 300


def print_check(result: CheckResult) -> None:
    """One line; warnings and faults in a line of their own each."""
    shown = [f for f in result.findings if f.severity in ("warning", "error")]
    first = next((f.what for f in result.findings if f.severity == "skipped"), "")
    notes = sum(f.severity == "note" for f in result.findings)
    said = first or (f"{notes} note{'s' if notes > 1 else ''}" if notes else "")
    time = "" if result.severity == "skipped" else f"{result.seconds:6.1f} s"
    console.print(
        f"{MARKS[result.severity]} {result.name:<12}{time:>9}  [dim]{escape(said)}[/]",
        soft_wrap=True,
    )
    for finding in shown:
        console.print(Padding(Text(_short(finding.what)), (0, 0, 0, 4)))


def show_diagnosis(diagnosis: Diagnosis, html: Path | None, as_json: bool) -> int:
    """Print the diagnosis and write its page; returns the exit status.

    A page that cannot be written does not cost the diagnosis: that is printed all the same.
    """
    report = diagnosis.report()
    failed: InputError | None = None
    if html is not None:
        try:
            write_page(html, report, time.strftime("%Y-%m-%d %H:%M %Z"))
        except InputError as error:
            failed = error
    if as_json:
        print_json(report)
    else:
        print_diagnosis(diagnosis)
    if failed is not None:
        errors.print(f"{failed.code} {failed.message}", markup=False, soft_wrap=True)
        return failed.exit_status
    if html is not None and not as_json:
        console.print(f"HTML report: {html}", style="dim", markup=False, soft_wrap=True)
    return 0 if diagnosis.decisive is None else 1


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The verdict, where, why it is believed, and what to do."""
    console.print()
    found = diagnosis.decisive
    if found is None:
        report = diagnosis.report()["confidence"]
        console.print(f"[bold green]healthy[/]  [dim]{report['reason']}[/]", soft_wrap=True)
        return
    console.print(f"[bold red]{found.verdict}[/]  {escape(_short(found.what))}", soft_wrap=True)
    console.print(_facts(found))
    if diagnosis.repro is not None:
        # In one line however long, so that it can be copied.
        console.print(f"[dim]again[/]  isobit doctor --replay {diagnosis.repro}", soft_wrap=True)


def _facts(found: Finding) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    place = [f"{key} {getattr(found, key)}" for key in PLACE if getattr(found, key) is not None]
    if place:
        table.add_row("where", Text(", ".join(place)))
    for number, evidence in enumerate(found.evidence[:MOST_EVIDENCE]):
        table.add_row("" if number else "evidence", Text(_evidence(evidence)))
    table.add_row("confidence", Text(f"{found.confidence}: {found.reason}"))
    table.add_row("remedy", Text(found.remedy, style="bold"))
    return table


def _evidence(evidence: Evidence) -> str:
    expected = "" if evidence.threshold is None else f" (expected {evidence.threshold})"
    source = f" [{evidence.source}]" if evidence.source else ""
    return _short(f"{evidence.what}: {evidence.measured}{expected}{source}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
