"""What one sum over ranks costs on each link: the number to look at before buying cards."""

from __future__ import annotations

from dataclasses import dataclass

from .collective_time import Wires
from .machines import Machines

HIDDEN = 8192
COUNTS = (2, 4, 8)
ROWS = (1, 512)


@dataclass(frozen=True, kw_only=True)
class SumCost:
    """Seconds of a sum of float32 [rows, 8192], a node of each of `count` ranks, one to a box
    where the link is one between boxes. `own` is None where no kernel of ours reaches."""

    link: str
    count: int
    rows: int
    own: float | None
    library: float


def sum_costs(machines: Machines) -> list[SumCost]:
    """Every link with 2, 4 and 8 ranks, at 1 and 512 rows."""
    costs = []
    for link in machines.links:
        for count in COUNTS:
            for rows in ROWS:
                box = 1 if link.custom_us is None else count
                wires = Wires(
                    degree=count, box=box, inside=link, between=link, assumed=machines.assumptions
                )
                size = 4 * HIDDEN * rows
                own = None if link.custom_us is None else wires.own(size)
                costs.append(
                    SumCost(
                        link=link.name,
                        count=count,
                        rows=rows,
                        own=own,
                        library=wires.ring(size),
                    )
                )
    return costs
