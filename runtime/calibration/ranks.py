"""The driver's side of a calibration's ranks: in this process, or as many processes as asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from isobit.errors import RankFault

from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import PlanSettings, make_plan
from ..collectives.gather import GatherCollectives
from ..model_files.settle import settle_files
from ..ranks.group import RankGroup
from ..ranks.launcher import Launcher
from .job import CalibrationJob
from .rank import CalibrationRank

log = logging.getLogger("isobit.runtime")
START_TIMEOUT_S = 600.0
ANSWER_TIMEOUT_S = 6 * 3600.0
"""A rank that lives answers when it is done; quantizing a large layer takes minutes to hours."""


class Ranks(Protocol):
    """All ranks of a calibration."""

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        """What every rank answers to a request of CalibrationRank; raises what they raise."""
        ...

    def close(self) -> None:
        """End the ranks. Safe to call twice."""
        ...


class RankInProcess:
    """Degree 1 without a process of its own."""

    def __init__(self, job: CalibrationJob, spec: ModelSpec) -> None:
        plan = make_plan(spec, PlanSettings(degree=1))
        self._rank = CalibrationRank(job, 0, GatherCollectives(plan, 0))

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        return [self._rank.answer(request)]

    def close(self) -> None:
        self._rank.close()


class LaunchedRanks:
    """As many processes as the job's degree."""

    def __init__(
        self, job: CalibrationJob, launcher: Launcher, software: Mapping[str, str]
    ) -> None:
        """Raises what RankGroup and settle_files raise, and RankFault E-RANK-DIFFERS when a rank
        runs other `software` than this process."""
        self._group = RankGroup(job.degree, launcher, START_TIMEOUT_S)
        try:
            settle_files(self._group, job.model, "auto")
            message = {"kind": "calibrate", "job": job.message()}
            self._group.tell({**message, **self._group.meeting_place})
            loaded = self._group.collect(
                "loaded", "starting the ranks", START_TIMEOUT_S, stop_at_error=False
            )
            for line in dict.fromkeys(
                line for each in loaded.values() for line in each["warnings"]
            ):
                log.warning("%s", line)
            self._check({rank: each["software"] for rank, each in loaded.items()}, software)
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> list[dict[str, Any]]:
        self._group.tell({"kind": "step", "request": request})
        answers = self._group.collect("stepped", request["do"], ANSWER_TIMEOUT_S)
        return [answers[rank] for rank in sorted(answers)]

    def close(self) -> None:
        self._group.close()

    def _check(self, ranks: Mapping[int, Mapping[str, str]], wanted: Mapping[str, str]) -> None:
        differing = [
            f"rank {rank}: {name} {found.get(name)}, the driver has {wanted[name]}"
            for rank, found in sorted(ranks.items())
            for name in wanted
            if found.get(name) != wanted[name]
        ]
        if differing:
            raise RankFault("E-RANK-DIFFERS", "\n".join(differing))
