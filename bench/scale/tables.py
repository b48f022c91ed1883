"""Tables of times, and everything as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.table import Table

from . import calibration
from .machines import Machines
from .plan_tables import short
from .sum_costs import SumCost
from .sweep import Row, Sweep


def sum_table(costs: list[SumCost]) -> Table:
    """What one sum over ranks costs by link and number of ranks."""
    table = Table(
        title="one sum, hidden size 8192, own kernel / library: 1 row in µs, 512 rows in ms"
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


def time_table(
    found: Sweep, degrees: tuple[int, ...], cluster: str, workload: str, gather: bool
) -> Table:
    """Milliseconds of a workload on one cluster; what does not fit is in brackets.

    With `gather` the library carries everything.
    """
    table = Table(title=f"{workload}, ms: {cluster}")
    table.add_column("model", no_wrap=True)
    for degree in degrees:
        table.add_column(str(degree), justify="right")
    mine = [r for r in found.rows if (r.cluster, r.workload.name) == (cluster, workload)]
    for model in found.models:
        rows = {row.degree: row for row in mine if row.model == model}
        times = {n: r.time.total_gather if gather else r.time.total for n, r in rows.items()}
        fastest = min((times[n] for n, row in rows.items() if row.fits), default=0.0)
        cells = {i.degree: short(i.code) for i in found.impossible if i.model == model}
        for degree, row in rows.items():
            cells[degree] = _cell(times[degree], row.fits, times[degree] == fastest)
        table.add_row(model, *(cells[degree] for degree in degrees))
    return table


def _cell(seconds: float, fits: bool, fastest: bool) -> str:
    text = _ms(seconds)
    if not fits:
        return f"[dim]({text})[/]"
    return f"[bold green]{text}[/]" if fastest else text


def _ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def fastest_table(found: Sweep, gather: bool) -> Table:
    """The number of cards with which a workload is done soonest, and its milliseconds."""
    table = Table(title="cards that are fastest: ms")
    table.add_column("model", no_wrap=True)
    table.add_column("cluster", no_wrap=True)
    names = list(dict.fromkeys(row.workload.name for row in found.rows))
    for name in names:
        table.add_column(name, justify="right")
    for model in found.models:
        for cluster in dict.fromkeys(row.cluster for row in found.rows):
            cells = []
            for name in names:
                asked = (model, cluster, name)
                times = [
                    (row.time.total_gather if gather else row.time.total, row.degree)
                    for row in found.rows
                    if row.fits and (row.model, row.cluster, row.workload.name) == asked
                ]
                cells.append(f"{min(times)[1]}: {_ms(min(times)[0])}" if times else "")
            table.add_row(model, cluster, *cells)
    return table


def calibration_table(found: list[calibration.Comparison]) -> Table:
    """The formula beside what was measured on a CPU."""
    table = Table(title="the same formula on the machine of docs/performance.md, ms")
    for name in ("row", "degree", "measured", "predicted", "off"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for each in found:
        low, high = each.row.ms
        measured = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        predicted = f"{each.predicted_ms:.3g}"
        table.add_row(each.row.name, str(each.row.degree), measured, predicted, f"{each.off:+.0%}")
    return table


def report(found: Sweep, machines: Machines, costs: list[SumCost]) -> dict[str, Any]:
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
        "impossible": [dataclasses.asdict(each) for each in found.impossible],
        "rows": [_row(row) for row in found.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    plan, time = row.planned.plan, row.time
    return {
        "model": row.model,
        "cluster": row.cluster,
        "tp": row.degree,
        "workload": row.workload.name,
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
            "collectives": time.collectives.chosen,
            "total": time.total,
            "total_gather": time.total_gather,
        },
        "tokens_per_s": row.tokens_per_s,
    }
