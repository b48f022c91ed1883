"""What a traced run says of its numbers: how large each site is, and where it first goes bad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..scheduler.batch import StepRows
from ..trace.statistics import TensorStatistics
from ..trace.tracer import Run

LOGITS = "logits"
SAMPLED = ("norm.out", "lm_head.out", LOGITS)
"""Sites that have the sampled rows of a step alone."""
CONSTANT = 1e-6
"""Relative; the root mean square of a constant is its magnitude, but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A row of a site on a rank: the token at `position` of prompt number `prompt`.

    `ranks` are all that have such a number at this site in this step, `rank` the first of them.
    """

    site: str
    step: int
    rank: int
    ranks: tuple[int, ...]
    prompt: int
    position: int
    token: int
    statistics: TensorStatistics


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The largest finite magnitude of a site, and the rank that has it."""

    site: str
    rank: int
    absmax: float


def sites_of(traces: Run) -> list[str]:
    """The sites of a run in the order of the forward pass."""
    ranks = max(traces[0], key=len) if traces else []
    return list(dict.fromkeys(record.site for record in ranks))


def first_not_finite(traces: Run, steps: Sequence[StepRows]) -> Place | None:
    """The first site, in forward order, of the first step that has a number which is not finite."""
    order = {site: number for number, site in enumerate(sites_of(traces))}
    for step, (ranks, rows) in enumerate(zip(traces, steps, strict=True)):
        bad = [
            (order[record.site], rank, record)
            for rank, records in enumerate(ranks)
            for record in records
            if record.statistics is not None and record.statistics.non_finite
        ]
        if not bad:
            continue
        first = min(number for number, _, _ in bad)
        here = [(rank, record) for number, rank, record in bad if number == first]
        rank, record = here[0]
        assert record.statistics is not None
        row = _row(rows, record.site, record.statistics.first_non_finite_row or 0)
        return Place(
            site=record.site,
            step=step,
            rank=rank,
            ranks=tuple(sorted({rank for rank, _ in here})),
            prompt=rows.owner[row],
            position=rows.positions[row],
            token=rows.tokens[row],
            statistics=record.statistics,
        )
    return None


def peaks(traces: Run) -> dict[str, Peak]:
    """The largest finite magnitude of every site over all steps and ranks, in forward order."""
    found: dict[str, Peak] = {}
    for ranks in traces:
        for rank, records in enumerate(ranks):
            for record in records:
                if (numbers := record.statistics) is None:
                    continue
                known = found.get(record.site)
                if known is None or numbers.absmax > known.absmax:
                    found[record.site] = Peak(site=record.site, rank=rank, absmax=numbers.absmax)
    return {site: found[site] for site in sites_of(traces) if site in found}


def by_rank(traces: Run) -> dict[str, dict[str, list[Any]]]:
    """Per site and rank the absmax, and the worst share of a part that is not finite or beyond
    float16, for reports; None where a rank holds nothing of a site."""
    table: dict[str, dict[str, list[Any]]] = {}
    for ranks in traces:
        for rank, records in enumerate(ranks):
            for record in records:
                if (numbers := record.statistics) is None:
                    continue
                columns = table.setdefault(record.site, {})
                for name in ("absmax", "non_finite", "beyond_fp16"):
                    column = columns.setdefault(name, [None] * len(ranks))
                    column[rank] = max(column[rank] or 0.0, getattr(numbers, name))
    return {site: table[site] for site in sites_of(traces) if site in table}


def constant_logits(traces: Run) -> float | None:
    """The magnitude that all logits of a run share; None when they differ.

    Logits that are all alike make every token as likely; the first, token 0, is then taken.
    """
    seen = [
        record.statistics
        for ranks in traces
        for record in ranks[0]
        if record.site == LOGITS and record.statistics is not None
    ]
    if not seen or any(numbers.non_finite for numbers in seen):
        return None
    if all(math.isclose(n.absmax, n.rms, rel_tol=CONSTANT) for n in seen):
        return seen[0].absmax
    return None


def first_all_zero(traces: Run) -> str | None:
    """The first site that holds nothing but zeros in every step, on every rank."""
    return next((site for site, peak in peaks(traces).items() if not peak.absmax), None)


def storms(tokens: Sequence[Sequence[int]], least: int) -> list[int]:
    """The requests that gave `least` tokens or more, every one of them token 0."""
    return [i for i, each in enumerate(tokens) if len(each) >= least and not any(each)]


def _row(rows: StepRows, site: str, row: int) -> int:
    return rows.sampled[row] if site in SAMPLED else row
