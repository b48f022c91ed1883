"""A whole check: facts, the ladder, the verdict, and the record that `--device auto` asks for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from isobit.errors import EnvironmentFault, RankFault

from ...runtime.checked_gpus import forget_passed, remember_passed
from ...runtime.devices import WITHOUT_CARD
from . import facts
from .child import FAULT
from .ladder import Rung, Step, rungs
from .runner import PASSED, Journal, Result, climb, run_rung
from .verdict import verdict

FACTS = Step(name="facts", title="what CUDA says of the GPUs", function="facts:gpus", most_s=60)
SIMULATED_GPUS = 2


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """`minutes` for each GPU; `only` names steps, () are all; `limits` are seconds by step."""

    rehearsal: bool = False
    only: tuple[str, ...] = ()
    minutes: float = 6.0
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)


def check_gpus(
    settings: CheckSettings,
    journal: TextIO | None,
    on_plan: Callable[[Sequence[Rung]], None],
    on_start: Callable[[Rung], None],
    on_result: Callable[[Result], None],
) -> dict[str, Any]:
    """Check every GPU; the report as `isobit gpu check --json` prints it.

    A check of all steps that passes is remembered for `--device auto`, one that fails is forgotten;
    a rehearsal does neither. Raises EnvironmentFault E-DEVICE-NONE without a GPU, InputError
    E-USAGE for a step that is none, RankFault E-DEVICE-FAILED where not even the facts can be had.
    """
    rungs(1, settings.only)
    if not settings.rehearsal and not torch.cuda.is_available():
        raise EnvironmentFault(
            "E-DEVICE-NONE",
            f"{WITHOUT_CARD.partition('.')[0]}. isobit gpu check --rehearse runs every step on a "
            "simulated GPU",
        )
    if settings.rehearsal:
        # Triton asks for it when a kernel is defined: the server of all processes has to have it.
        os.environ["TRITON_INTERPRET"] = "1"
    lines, machine = Journal(journal), facts.machine()
    found = _gpus(settings.rehearsal)
    before = {"machine": machine, **found, "clocks_before": facts.clocks()}
    lines.write({"facts": before})
    planned = rungs(len(found["gpus"]), settings.only, rehearsal=settings.rehearsal)
    on_plan(planned)
    results = climb(
        planned,
        lines,
        on_result,
        rehearsal=settings.rehearsal,
        seconds=60 * settings.minutes * len(found["gpus"]),
        limits=settings.limits,
        on_start=on_start,
    )
    judged = verdict(results)
    report = {
        "rehearsal": settings.rehearsal,
        "verdict": judged,
        **before,
        "clocks_after": facts.clocks(),
        "results": results,
        "settings": dataclasses.asdict(settings),
        "record": None,
    }
    if not settings.rehearsal and FAULT not in os.environ:
        if not judged["passed"]:
            forget_passed()
        elif not settings.only:
            report["record"] = str(remember_passed(found["names"], machine["date"]))
    lines.write({"verdict": judged})
    return report


def _gpus(rehearsal: bool) -> dict[str, Any]:
    """What CUDA says, asked by a child: this process must be able to fork children that use it."""
    count = SIMULATED_GPUS if rehearsal else 1
    rung = Rung(step=FACTS, gpus=tuple(range(count)))
    result = run_rung(rung, rehearsal=rehearsal, most_s=FACTS.most_s)
    if result["status"] != PASSED:
        raise RankFault(
            "E-DEVICE-FAILED",
            f"CUDA does not answer: {result['what']}\n{result.get('log', '')}".strip(),
        )
    return result["rows"][0]


def out_file(path: Path | None) -> TextIO | None:
    """The file of results, open for appending."""
    return None if path is None else path.open("a", encoding="utf-8")
