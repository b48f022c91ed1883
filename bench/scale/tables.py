"""Tables of times, and everything as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from . import calibration
from .machines import Machines
from .sum_costs import SumCost, sum_costs
from .sweep import Row


def sum_table(costs: list[SumCost]) -> Table:
    """What one sum over ranks costs by link and number of ranks."""
    table = Table(
        title="one sum over ranks of hidden size 8192, own kernel / library: 1 row in µs, 512 in ms",
        title_justify="left",
    )
    counts = list(dict.fromkeys(cost.count for cost in costs))
    table.add_column("link")
    for rows in (1, 512):
        for count in counts:
            unit = "row" if rows == 1 else "rows"
            table.add_column(f"{count}: {rows} {unit}", justify="right")
    for link in dict.fromkeys(cost.link for cost in costs):
        cells = []
        for rows, scale, digits in ((1, 1e6, 0), (512, 1e3, 1)):
            for cost in (c for c in costs if c.link == link and c.rows == rows):
                own = "–" if cost.own is None else f"{cost.own * scale:.{digits}f}"
                cells.append(f"{own} / {cost.library * scale:.{digits}f}")
        table.add_row(link, *cells)
    return table


def time_table(rows: list[Row], cluster: str, workload: str) -> Table:
    """Milliseconds of a workload on one cluster; what does not fit is in brackets."""
    mine = [row for row in rows if row.cluster == cluster and row.workload.name == workload]
    table = Table(title=f"{workload}, ms: {cluster}", title_justify="left")
    table.add_column("model")
    for degree in dict.fromkeys(row.degree for row in mine):
        table.add_column(str(degree), justify="right")
    for model in dict.fromkeys(row.model for row in mine):
        found = [row for row in mine if row.model == model]
        fastest = min((r.time.total for r in found if r.time and r.fits), default=None)
        table.add_row(model, *(_cell(row, fastest) for row in found))
    return table


def _cell(row: Row, fastest: float | None) -> str:
    if row.time is None:
        return (row.why_not or "").partition(" ")[0]
    ms = row.time.total * 1e3
    text = f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"
    if not row.fits:
        return f"[dim]({text})[/]"
    return f"[bold green]{text}[/]" if row.time.total == fastest else text


def calibration_table(found: list[calibration.Comparison]) -> Table:
    """The formula beside what was measured on a CPU."""
    table = Table(
        title="the same formula on the machine of docs/performance.md, ms", title_justify="left"
    )
    for name in ("row", "degree", "measured", "predicted", "off"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for each in found:
        low, high = each.row.ms
        measured = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        predicted = f"{each.predicted_ms:.3g}"
        table.add_row(each.row.name, str(each.row.degree), measured, predicted, f"{each.off:+.0%}")
    return table


def report(rows: list[Row], machines: Machines, costs: list[SumCost]) -> dict[str, Any]:
    """Everything as one JSON object: bytes, seconds, tokens a second."""
    return {
        "machines": dataclasses.asdict(machines),
        "sums": [dataclasses.asdict(cost) for cost in costs],
        "calibration": [
            {
                "row": each.row.name,
                "tp": each.row.degree,
                "measured_ms": each.row.ms,
                "predicted_ms": each.predicted_ms,
            }
            for each in calibration.compare()
        ],
        "rows": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    named = {
        "model": row.model,
        "cluster": row.cluster,
        "tp": row.degree,
        "workload": row.workload.name,
        "works": row.why_not is None,
    }
    if row.time is None or row.planned is None:
        return {**named, "why_not": row.why_not}
    plan, time = row.planned.plan, row.time
    return {
        **named,
        "atoms": plan.atoms,
        "layout": plan.layout,
        "plan": plan.content_hash(),
        "padding_percent": round(100 * row.planned.padding, 3),
        "balance": round(row.planned.balance, 4),
        "idle_ranks": row.planned.idle,
        "needed": row.needed,
        "fits": row.fits,
        "seconds": {
            "fixed": time.fixed,
            "kernels": time.kernels,
            "busy": time.busy,
            "inside": time.collectives.inside,
            "between": time.collectives.between,
            "total": time.total,
            "total_gather": time.total_gather,
        },
        "tokens_per_s": row.tokens_per_s,
    }
