"""What a traced run records: which numbers, at which sites, on which ranks, in which steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from isobit.errors import InputError

RECORDS = ("digest", "statistics", "values")


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """What to record. None stands for all.

    `records`: "digest" (equal bits, equal digest), "statistics" (see TensorStatistics) for each
    part of a tensor, "values" for the tensor itself, which each rank writes into `folder`.
    `sites`: patterns of site names, `*` matching dots as well. `ranks` and `steps` count from 0;
    a step is a forward pass of the engine. `positions` of tokens restrict values alone.
    """

    records: tuple[str, ...] = ("digest",)
    sites: tuple[str, ...] = ("*",)
    ranks: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    folder: str | None = None

    def wants(self, site: str, rank: int) -> bool:
        """Whether a site is recorded on a rank."""
        return self.wants_rank(rank) and any(fnmatchcase(site, each) for each in self.sites)

    def wants_rank(self, rank: int) -> bool:
        return self.ranks is None or rank in self.ranks

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(value: dict[str, Any]) -> TraceSettings:
        """Inverse of to_dict, also after a trip through msgpack (tuples become lists)."""
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return TraceSettings(**fields)  # pyright: ignore[reportArgumentType]


def check_trace_settings(settings: TraceSettings, sites: Sequence[str], degree: int) -> None:
    """Raise InputError E-TRACE-SETTINGS naming everything that cannot be recorded.

    `sites` are the names that the model has.
    """
    wrong = [
        f"record {record!r}: expected {', '.join(RECORDS)}"
        for record in settings.records
        if record not in RECORDS
    ]
    if not settings.records:
        wrong.append(f"nothing to record: expected {', '.join(RECORDS)}")
    for pattern in settings.sites:
        if not any(fnmatchcase(site, pattern) for site in sites):
            last = sorted({site.rpartition(".")[0].rpartition(".")[2] for site in sites})
            wrong.append(f"sites {pattern!r}: no site matches. There are {', '.join(last)}")
    for rank in settings.ranks or ():
        if not 0 <= rank < degree:
            wrong.append(f"rank {rank}: there are ranks 0 to {degree - 1}")
    for name in ("ranks", "steps", "positions"):
        numbers: tuple[int, ...] | None = getattr(settings, name)
        if numbers is not None and not numbers:
            wrong.append(f"{name}: none are left")
        wrong += [f"{name}: {n} is negative" for n in numbers or () if n < 0 and name != "ranks"]
    if ("values" in settings.records) != (settings.folder is not None):
        wrong.append("values and the folder that they are written into come together")
    if wrong:
        raise InputError("E-TRACE-SETTINGS", "\n".join(wrong))
