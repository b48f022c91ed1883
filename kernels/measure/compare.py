"""Measuring in turns: the machine, ours, its rivals, again and again: noise meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .machine import Machine

OURS = "ours"
SAMPLE_S = 0.01
SETTLE_S = 0.02
"""Torch's threads turn round for some milliseconds after their work, on cores that others need."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An op on one shape. One run makes `calls` calls, each over `nbytes` and `operations`.

    `rivals` do the same work in another way, in as many calls.
    """

    op: str
    shape: str
    rows: int
    nbytes: int
    operations: int
    calls: int
    run: Callable[[], object]
    rivals: dict[str, Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Medians over rounds: of times, and of ratios within a round.

    `gb_s` is 10^9 bytes per second, `gflop_s` 10^9 operations per second; the shares compare them
    with what the machine read and computed in the same round. `times_faster` has a rival's time
    over ours, so 2 is twice as fast.
    """

    op: str
    shape: str
    rows: int
    us: float
    gb_s: float
    gflop_s: float
    bandwidth_share: float
    peak_share: float
    times_faster: dict[str, float]


@torch.inference_mode()
def measure(case: Case, machine: Machine, threads: int, rounds: int) -> Measured:
    """Run a case and its rivals `rounds` times in turns, each round beginning with another one."""
    runs = {OURS: case.run, **case.rivals}
    repeats = {name: _repeats(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    reads, peaks = [], []
    names = list(runs)
    for turn in range(rounds):
        reads.append(machine.bytes_per_second())
        peaks.append(machine.operations_per_second(threads))
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(_timed(runs[name], repeats[name]))
    ours = times.pop(OURS)
    seconds = statistics.median(ours)
    nbytes, operations = case.nbytes * case.calls, case.operations * case.calls
    return Measured(
        op=case.op,
        shape=case.shape,
        rows=case.rows,
        us=1e6 * seconds / case.calls,
        gb_s=nbytes / seconds / 1e9,
        gflop_s=operations / seconds / 1e9,
        bandwidth_share=_median_ratio([nbytes / read for read in reads], ours),
        peak_share=_median_ratio([operations / peak for peak in peaks], ours),
        times_faster={name: _median_ratio(theirs, ours) for name, theirs in times.items()},
    )


def _median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def _repeats(run: Callable[[], object]) -> int:
    """How often to call `run` so that waking threads and cold caches do not count."""
    run()
    return 1 + int(SAMPLE_S / _timed(run, 1))


def _timed(run: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, after a rest and one that is not counted."""
    time.sleep(SETTLE_S)
    run()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats
