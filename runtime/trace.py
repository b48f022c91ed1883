"""Watching a forward pass: a digest of the tensor at every site, comparable across degrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from .digest import tensor_digest

WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class TraceRecord:
    """The digest of one part of a tensor at a site. `part` is "whole" or "atom 3", "kv head 1"."""

    site: str
    part: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two runs part. `rank` is the rank of the second run that differs."""

    site: str
    part: str
    step: int
    degrees: tuple[int, int]
    rank: int


class Tracer:
    """Collects the records of one step; does nothing unless `enabled`."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.records: list[TraceRecord] = []

    def whole(self, site: str, tensor: torch.Tensor) -> None:
        """Record a tensor that every rank holds in full."""
        if self.enabled:
            self._add(site, WHOLE, tensor)

    def columns(
        self, site: str, tensor: torch.Tensor, kind: str, first: int, ends: Sequence[int]
    ) -> None:
        """Record pieces [T, ends[i]:ends[i+1]] of a rank's columns, the first numbered `first`."""
        if self.enabled:
            for i, (begin, end) in enumerate(pairwise(ends)):
                if end > begin:
                    self._add(site, f"{kind} {first + i}", tensor[:, begin:end])

    def partials(self, site: str, partials: torch.Tensor, first: int) -> None:
        """Record the partial sums [A, T, N] of a rank's atoms."""
        if self.enabled:
            for i, partial in enumerate(partials):
                self._add(site, f"atom {first + i}", partial)

    def take(self) -> list[TraceRecord]:
        records, self.records = self.records, []
        return records

    def _add(self, site: str, part: str, tensor: torch.Tensor) -> None:
        self.records.append(TraceRecord(site=site, part=part, digest=tensor_digest(tensor)))


Run = list[list[list[TraceRecord]]]


def first_difference(a: Run, b: Run, degrees: tuple[int, int]) -> Difference | None:
    """Compare two traced runs [step][rank][record]; return where they first part.

    Within a run, two ranks that hold the same part must agree as well.
    """
    for step, (ranks_a, ranks_b) in enumerate(zip(a, b, strict=False)):
        known: dict[tuple[str, str], str] = {}
        found: list[tuple[int, Difference]] = []
        order = {site: i for i, site in enumerate(dict.fromkeys(r.site for r in ranks_a[0]))}
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
