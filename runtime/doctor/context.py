"""What checks share: the ranks under examination and what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from isobit.errors import RankFault

from ...shard.model.spec import ModelSpec
from ...shard.plan.plan import ShardPlan
from ..engine.engine import Engine
from ..engine.preflight import prepare
from ..ranks.launcher import Launcher
from ..scheduler.batch import check_requests
from ..scheduler.kv_pages import with_pages_for
from ..settings.engine import EngineSettings
from ..settings.trace import TraceSettings
from .case import Case
from .failures import RanksLost
from .ranks import RanksExamined


class Context:
    """A case with its ranks. Use as a context manager: leaving it ends every process."""

    def __init__(self, case: Case, new_launcher: Callable[[], Launcher]) -> None:
        self.case = case
        self._new_launcher = new_launcher
        self._measured: dict[str, Any] = {}
        self._examined: dict[tuple[int, str], RanksExamined] = {}
        self._lost: dict[tuple[int, str], RankFault] = {}

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for ranks in self._examined.values():
            ranks.close()

    def measure(self, name: str, value: Any) -> None:
        """Keep something that the running check measured, as JSON, for reports."""
        self._measured[name] = value

    def take_measured(self) -> dict[str, Any]:
        measured, self._measured = self._measured, {}
        return measured

    def settings(self, degree: int, all_reduce: str | None = None) -> EngineSettings:
        """How the case is run at a degree: traced, and examined op by op."""
        case = self.case
        lengths = [len(prompt) + case.max_tokens for prompt in case.prompts]
        return dataclasses.replace(
            with_pages_for(case.engine, lengths),
            plan=dataclasses.replace(case.engine.plan, degree=degree),
            trace=TraceSettings(),
            examine=True,
            all_reduce=all_reduce or case.engine.all_reduce,
        )

    def prepared(self, degree: int | None = None) -> tuple[ModelSpec, ShardPlan]:
        """The spec and the plan; raises InputError for a case that cannot run."""
        case = self.case
        degree = case.degree if degree is None else degree
        spec, plan = prepare(case.model, self.settings(degree))
        prompts = [list(prompt) for prompt in case.prompts]
        check_requests(spec, prompts, [case.sampling] * len(prompts))
        return spec, plan

    def engine(self, settings: EngineSettings, model: Path | None = None) -> Engine:
        """An engine for other questions, once the ranks under examination have ended.

        It runs the case's model where none is named. Raises as Engine does.
        """
        for ranks in self._examined.values():
            ranks.close()
        return Engine(model or self.case.model, settings, self._new_launcher())

    def ranks(self, degree: int | None = None, all_reduce: str | None = None) -> RanksExamined:
        """The case's ranks at a degree, started when they are first asked for.

        What they answered is kept; the processes themselves end when ranks of another degree are
        started. Raises RankFault or InputError when they cannot start, RanksLost when they were
        lost before.
        """
        degree = self.case.degree if degree is None else degree
        settings = self.settings(degree, all_reduce)
        key = degree, settings.all_reduce
        if key in self._lost:
            raise RanksLost(f"the ranks of tp {degree} were lost: {self._lost[key].code}")
        if key not in self._examined:
            for others in self._examined.values():
                others.close()
            try:
                self._examined[key] = RanksExamined(self.case, settings, self._new_launcher)
            except RankFault as fault:
                self._lost[key] = fault
                raise
        ranks = self._examined[key]
        ranks.on_loss = lambda fault: self._lost.setdefault(key, fault)
        return ranks
