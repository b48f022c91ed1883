"""Watching a forward pass: what is recorded at every site, comparable across degrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..digest import tensor_digest
from ..settings.trace import TraceSettings
from .statistics import TensorStatistics, statistics_from, tensor_statistics
from .values import ValuesWriter

WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How a rank's columns are cut: part `first + i` of a `kind` is [ends[i]:ends[i+1]).

    In the unsharded tensor the rank's columns begin at `begin`.
    """

    kind: str
    first: int
    ends: Sequence[int]
    begin: int

    @staticmethod
    def atoms(owned: range, ends: Sequence[int], begin: int) -> Parts:
        return Parts(kind="atom", first=owned.start, ends=ends, begin=begin)


@dataclass(frozen=True, kw_only=True)
class TraceRecord:
    """One part of a tensor at a site, on one rank, in one step.

    `part` is "whole" or "atom 3", "kv head 1". It covers columns [begin:end) of the unsharded
    tensor, padding included; of partial sums [T, N] those of atom a are [a * N:(a + 1) * N).
    `digest` is empty, `statistics` None where they were not asked for.
    """

    site: str
    part: str
    digest: str = ""
    begin: int = 0
    end: int = 0
    statistics: TensorStatistics | None = None

    def fields(self) -> list[Any]:
        """What a message carries."""
        numbers = None if self.statistics is None else self.statistics.fields()
        return [self.site, self.part, self.digest, self.begin, self.end, numbers]


def record_from(fields: Sequence[Any]) -> TraceRecord:
    """Inverse of TraceRecord.fields. Raises TypeError, ValueError for something else."""
    site, part, digest, begin, end, numbers = fields
    return TraceRecord(
        site=site,
        part=part,
        digest=digest,
        begin=begin,
        end=end,
        statistics=None if numbers is None else statistics_from(numbers),
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two runs part. `rank` is the rank of the second run that differs."""

    site: str
    part: str
    step: int
    degrees: tuple[int, int]
    rank: int


class Tracer:
    """Collects the records of one step on one rank; without settings it wants no site."""

    def __init__(self, settings: TraceSettings | None, rank: int = 0) -> None:
        self._settings, self._rank = settings, rank
        self._records: list[TraceRecord] = []
        self._values: ValuesWriter | None = None
        wanted = () if settings is None else settings.records
        self._digests, self._numbers = "digest" in wanted, "statistics" in wanted
        if settings is not None and settings.folder is not None and settings.wants_rank(rank):
            self._values = ValuesWriter(Path(settings.folder), rank)
        self._step, self._recording = 0, settings is not None
        self._rows: dict[bool, list[int] | None] = {False: None, True: None}

    @property
    def enabled(self) -> bool:
        """Whether anything may be recorded on this rank."""
        return self._settings is not None

    def wants(self, site: str) -> bool:
        """Whether a site is recorded: asked once, so that the others cost nothing."""
        return self._settings is not None and self._settings.wants(site, self._rank)

    def begin_step(self, step: int, positions: Sequence[int], sampled: Sequence[int]) -> None:
        """Say which step comes, counted from 0, its rows' positions and which rows are sampled."""
        if (settings := self._settings) is None:
            return
        self._step = step
        self._recording = settings.steps is None or step in settings.steps
        if settings.positions is not None:
            chosen = set(settings.positions)
            rows = [row for row, position in enumerate(positions) if position in chosen]
            places = [i for i, row in enumerate(sampled) if positions[row] in chosen]
            self._rows = {False: rows, True: places}

    def whole(self, site: str, tensor: torch.Tensor, *, sampled: bool = False) -> None:
        """Record a tensor [T, N] that every rank holds in full, of all rows or the `sampled`."""
        if self._recording:
            self._add(site, WHOLE, tensor, 0)
            self._write(site, tensor, sampled)

    def columns(
        self, site: str, tensor: torch.Tensor, parts: Parts, *, sampled: bool = False
    ) -> None:
        """Record the parts of a rank's columns [T, parts.ends[-1] or more]."""
        if self._recording:
            for i, (left, right) in enumerate(pairwise(parts.ends)):
                if right > left:
                    name = f"{parts.kind} {parts.first + i}"
                    self._add(site, name, tensor[:, left:right], parts.begin + left)
            self._write(site, tensor[:, : parts.ends[-1]], sampled)

    def partials(self, site: str, partials: torch.Tensor, first: int) -> None:
        """Record the partial sums [A, T, N] of a rank's atoms."""
        if self._recording:
            width = partials.shape[2]
            for i, partial in enumerate(partials):
                self._add(site, f"atom {first + i}", partial, (first + i) * width)
            if self._values is not None:
                self._write(site, partials.transpose(0, 1).flatten(1), False)

    def take(self) -> list[TraceRecord]:
        """What was recorded since it was last taken, in the order of the forward pass."""
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        """Complete the file of values."""
        if self._values is not None:
            self._values.close()

    def _add(self, site: str, part: str, tensor: torch.Tensor, begin: int) -> None:
        self._records.append(
            TraceRecord(
                site=site,
                part=part,
                digest=tensor_digest(tensor) if self._digests else "",
                begin=begin,
                end=begin + tensor.shape[1],
                statistics=tensor_statistics(tensor) if self._numbers else None,
            )
        )

    def _write(self, site: str, tensor: torch.Tensor, sampled: bool) -> None:
        if self._values is not None and tensor.shape[1]:
            rows = self._rows[sampled]
            self._values.add(self._step, site, tensor if rows is None else tensor[rows])


Run = list[list[list[TraceRecord]]]


def first_difference(a: Run, b: Run, degrees: tuple[int, int]) -> Difference | None:
    """Compare two traced runs [step][rank][record]; return where they first part.

    Within a run, two ranks that hold the same part must agree as well.
    """
    for step, (ranks_a, ranks_b) in enumerate(zip(a, b, strict=False)):
        known: dict[tuple[str, str], str] = {}
        found: list[tuple[int, Difference]] = []
        fullest = max(ranks_a, key=len)
        order = {site: i for i, site in enumerate(dict.fromkeys(r.site for r in fullest))}
        runs = ((degrees[0], ranks_a), (degrees[1], ranks_b))
        for degree, ranks in runs:
            for rank, records in enumerate(ranks):
                for record in records:
                    expected = known.setdefault((record.site, record.part), record.digest)
                    if expected != record.digest:
                        difference = Difference(
                            site=record.site,
                            part=record.part,
                            step=step,
                            degrees=(degrees[0], degree),
                            rank=rank,
                        )
                        found.append((order.get(record.site, len(order)), difference))
        if found:
            return min(found, key=lambda item: item[0])[1]
    return None
