"""The ranks under examination: an engine whose ranks also answer questions about themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from isobit.errors import RankFault

from ..engine.engine import Engine
from ..engine.results import Batch
from ..ranks.launcher import Launcher
from ..settings.engine import EngineSettings
from .case import Case
from .failures import RanksFailed

GRACE_S = 3.0
"""How long ranks that reported an error may take to end."""
DIED = "E-RANK-DIED"
T = TypeVar("T")


class RanksExamined:
    """Answers are asked for once and kept. Every method may raise RanksFailed."""

    def __init__(
        self, case: Case, settings: EngineSettings, new_launcher: Callable[[], Launcher]
    ) -> None:
        """Start and load the ranks; raises RankFault or InputError as Engine does."""
        self._case, self._launcher = case, new_launcher()
        self._kept: dict[str, Any] = {}
        self.on_loss: Callable[[RankFault], object] = lambda fault: None
        self._engine = Engine(case.model, settings, self._launcher)
        self.spec, self.plan = self._engine.spec, self._engine.plan
        self.reports = self._engine.ranks

    def weights(self) -> list[dict[str, Any]]:
        """What each rank holds against what the file has: see audit.audit."""
        return self._once("weights", lambda: self._ask("audit"))

    def weights_after(self) -> list[dict[str, Any]]:
        """The same after `run`: a rank's memory may have changed since."""
        self.run()
        return self._once("weights after", lambda: self._ask("audit"))

    def drilled(self) -> list[dict[str, Any]]:
        """How the collectives of each rank did at every sum of the model: see drill.drill."""
        return self._once("drill", lambda: self._ask("drill"))

    def received_wrongly(self) -> set[int]:
        """Ranks whose sums were wrong in the drill, if there has been one."""
        answers: list[dict[str, Any]] = self._kept.get("drill", [])
        return {rank for rank, answer in enumerate(answers) if answer["wrong"]}

    def run(self) -> Batch:
        """The case's prompts, generated once, with the trace of every step."""
        prompts = [list(prompt) for prompt in self._case.prompts]
        sampling = [self._case.sampling] * len(prompts)
        return self._once("run", lambda: self._engine.generate(prompts, sampling))

    def operations(self) -> list[dict[str, Any]]:
        """What was wrong with the operations of each rank during `run`: see op_check.OpCheck."""
        self.run()
        return self._once("operations", lambda: self._ask("operations"))

    def close(self) -> None:
        """End the processes; what they answered stays."""
        self._engine.close()

    def _ask(self, kind: str) -> list[dict[str, Any]]:
        return self._engine.ask(kind, f"{kind} of the doctor")

    def _once(self, name: str, ask: Callable[[], T]) -> T:
        if name not in self._kept:
            self._kept[name] = self._guarded(ask)
        return self._kept[name]

    def _guarded(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except RankFault as fault:
            failed = RanksFailed(fault, () if fault.code == DIED else self._silent())
            self.on_loss(failed)
            raise failed from fault

    def _silent(self) -> list[int]:
        """Ranks that neither answered nor ended. One that reports an error ends soon after it."""
        everyone = set(range(self.plan.degree))
        deadline = time.monotonic() + GRACE_S
        alive = everyone - set(self._launcher.dead())
        while len(alive) == len(everyone) and time.monotonic() < deadline:
            time.sleep(0.1)
            alive = everyone - set(self._launcher.dead())
        time.sleep(0.5)
        alive = everyone - set(self._launcher.dead())
        return sorted(alive) if len(alive) < len(everyone) else []
