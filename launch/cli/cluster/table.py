"""Hosts and their facts as a table, and what is wrong with them below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from isobit.findings import Finding, Severity

from ...cluster.check.facts import Report
from ..output import console
from .rows import rows_of

NAMES, COLUMN = 17, 25
"""Characters that the names of facts take up, and in most cases those of one host."""
STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def print_table(reports: Sequence[Report]) -> None:
    """A column a host, the head first; so many of them side by side as the terminal has room for.

    What differs from most hosts is marked with ≠.
    """
    rows = rows_of(reports)
    beside = max(1, (console.width - NAMES) // COLUMN)
    for first in range(0, len(reports), beside):
        shown = range(first, min(first + beside, len(reports)))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True)
        table.add_column("", style="dim", no_wrap=True)
        for host in shown:
            head = ", head" if reports[host]["head"] else ""
            table.add_column(Text(f"{reports[host]['host']}{head}"), overflow="fold")
        for row in rows:
            cells = [
                Text(f"≠ {row.texts[host]}", style="bold yellow")
                if row.odd[host]
                else Text(row.texts[host])
                for host in shown
            ]
            table.add_row(row.name, *cells)
        console.print(table)
        console.print()


def print_findings(found: Sequence[Finding]) -> None:
    """What is wrong in a line each, and the remedy below it."""
    for finding in found:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=len("warning"))
        grid.add_column(overflow="fold")
        grid.add_row(Text(finding.severity, style=STYLES[finding.severity]), Text(finding.what))
        grid.add_row("", Text(f"-> {finding.remedy}", style="dim"))
        console.print(grid)
