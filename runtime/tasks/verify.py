"""The same bits at every degree, or the first site where they part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isobit.errors import InputError, RankFault

from ..digest import chain_digests
from ..engine.agreement import DIFFERS, DIVERGED
from ..engine.engine import OUTSIDE_CONTRACT, Engine
from ..engine.preflight import prepare
from ..engine.results import Batch
from ..ranks.launcher import Launcher
from ..scheduler.batch import check_requests
from ..scheduler.kv_pages import with_pages_for
from ..settings.engine import EngineSettings, SamplingSettings, at_degree
from ..settings.trace import TraceSettings
from ..trace.tracer import Difference, first_difference

OnProgress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DegreeResult:
    """What one degree computed for a batch of prompts.

    `digest` covers the logits of every emitted token of every prompt, and the hidden state of
    every row of every step.
    """

    digest: str
    batch: Batch

    def report(self) -> dict[str, Any]:
        prompts = [
            {"logits_digest": c.logits_digest, "tokens": c.tokens} for c in self.batch.completions
        ]
        return {"logits_digest": self.digest, "tokens": prompts[0]["tokens"], "prompts": prompts}


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The outcome. `difference` is None when every degree gave the same bits."""

    degrees: dict[int, DegreeResult]
    difference: Difference | None
    rotary: dict[str, Any]
    contract: str = "on"
    """on, or off with the reason why equal bits were not promised."""

    def report(self) -> dict[str, Any]:
        """The outcome as `isobit verify --json` prints it."""
        difference = None if self.difference is None else dataclasses.asdict(self.difference)
        return {
            "identical": self.difference is None,
            "contract": self.contract,
            "rotary": self.rotary,
            "degrees": {str(degree): r.report() for degree, r in self.degrees.items()},
            "first_difference": difference,
        }


def verify(
    model: Path,
    degrees: Sequence[int],
    settings: EngineSettings,
    prompts: Sequence[list[int]],
    max_tokens: int,
    new_launcher: Callable[[], Launcher],
    on_progress: OnProgress = lambda text: None,
) -> Verification:
    """Run the same greedy batch at each degree and compare every bit of it.

    When two degrees differ, both are run again with a trace and the first site that differs is
    named. Raises InputError before anything starts when a degree cannot work.
    """
    if not set(degrees) - {1}:
        raise InputError("E-VERIFY-DEGREES", "nothing to compare: give two sizes or more, as 1,2")
    sampling = SamplingSettings(max_tokens=max_tokens, ignore_eos=True)
    settings = with_pages_for(settings, [len(prompt) + max_tokens for prompt in prompts])

    def at(degree: int, trace: bool) -> EngineSettings:
        plan = dataclasses.replace(settings.plan, degree=degree)
        traced = TraceSettings() if trace else None
        return dataclasses.replace(at_degree(settings, plan), trace=traced)

    rotary: dict[str, Any] = {}
    for degree in degrees:
        spec, _ = prepare(model, at(degree, False))
        rotary = spec.rotary.report()
        check_requests(spec, prompts, [sampling] * len(prompts))

    def run(degree: int, trace: bool) -> Batch:
        with Engine(model, at(degree, trace), new_launcher()) as engine:
            batch = engine.generate(prompts, [sampling] * len(prompts))
        if wrong := [c.error for c in batch.completions if c.error]:
            raise RankFault("E-NUM-LOGITS", "\n".join(wrong))
        return batch

    results: dict[int, DegreeResult] = {}
    differing: int | None = None
    for degree in dict.fromkeys(degrees):
        on_progress(f"degree {degree}")
        try:
            batch = run(degree, False)
        except RankFault as fault:
            if fault.code not in (DIVERGED, DIFFERS):
                raise
            differing = degree
            break
        results[degree] = DegreeResult(digest=_digest(batch), batch=batch)
        if results[degree].digest != next(iter(results.values())).digest:
            differing = degree if differing is None else differing
    contract = f"off: {OUTSIDE_CONTRACT}" if settings.all_reduce == "library" else "on"
    if differing is None:
        return Verification(degrees=results, difference=None, rotary=rotary, contract=contract)
    first = next(iter(results), differing)
    on_progress(f"tp {differing} differs from tp {first}: tracing")
    traced = run(differing, True).traces
    reference = traced if first == differing else run(first, True).traces
    difference = first_difference(reference, traced, (first, differing)) or Difference(
        site="not reproduced under trace", part="whole", step=0, degrees=(first, differing), rank=0
    )
    return Verification(degrees=results, difference=difference, rotary=rotary, contract=contract)


def _digest(batch: Batch) -> str:
    logits = [digest for c in batch.completions for digest in c.logits_digests]
    return chain_digests(logits + batch.hidden_digests)
