"""One process of the canary: FOLDER RANK DEGREE TIMEOUT; prints one JSON object a line."""

from __future__ import annotations

import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from isobit.errors import IsobitError

from ...shard.plan.plan import ShardPlan
from ..collectives.gather import GatherCollectives
from ..collectives.interface import Collectives
from ..collectives.library import LibraryCollectives
from ..collectives.measure import even_plan
from ..collectives.shared import SharedCollectives, SharedSettings
from ..transport import rendezvous
from .canary import MODES, START_S

SIZES = (1, 17, 4096, 20480, 70001)
"""Elements of a message: odd ones, and those on both sides of the custom path's thresholds."""
REPEATS = 8
LARGEST = 999
MOST_SKEW_S = 300e-6


def main() -> None:
    folder, rank, degree, timeout_s = sys.argv[1], *map(float, sys.argv[2:5])
    rank, degree = int(rank), int(degree)
    # Whatever this process waits for, it does not outlive its driver for long.
    signal.alarm(int(START_S + timeout_s) + 5)
    # The terminal sends Ctrl-C to the whole process group; only the driver acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    rendezvous.join(f"file://{folder}/rendezvous", rank, degree, timeout_s)
    plan = even_plan(degree)
    make: dict[str, Callable[[], Collectives]] = {
        "gather": lambda: GatherCollectives(plan, rank),
        "library": lambda: LibraryCollectives(plan, rank),
        "custom": lambda: SharedCollectives(plan, rank, SharedSettings(timeout_s=timeout_s)),
    }
    try:
        for mode in MODES:
            _say({"mode": mode, **_tried(make[mode], plan, rank)})
    finally:
        # gloo's threads must not be left to the end of the interpreter.
        if dist.is_initialized():
            dist.destroy_process_group()


def _tried(make: Callable[[], Collectives], plan: ShardPlan, rank: int) -> dict[str, object]:
    """The times of one mode, with the first thing that was wrong as "error"."""
    try:
        collectives = make()
        wrong, times = _sums(collectives, plan, rank)
        collectives.close()
    except (IsobitError, ImportError) as error:
        return {"error": str(error)}
    return {
        "median_us": round(statistics.median(times) * 1e6, 1),
        "slowest_us": round(max(times) * 1e6, 1),
        "error": wrong,
    }


def _sums(collectives: Collectives, plan: ShardPlan, rank: int) -> tuple[str, list[float]]:
    skew, wrong, times = random.Random(rank), "", []  # noqa: S311
    for size in SIZES:
        for repeat in range(REPEATS):
            parts = [_numbers(size, repeat, other) for other in range(plan.degree)]
            wanted = torch.stack(parts).sum(0)
            out = torch.full((1, size), float("nan"))
            time.sleep(skew.uniform(0, MOST_SKEW_S))
            started = time.perf_counter()
            collectives.all_reduce(parts[rank].view(1, 1, size), out, "canary")
            times.append(time.perf_counter() - started)
            bad = (out[0] != wanted).nonzero()
            if len(bad) and not wrong:
                first = int(bad[0])
                wrong = (
                    f"{len(bad)} of {size} elements are wrong, the first at {first}: "
                    f"{out[0, first].item()}, not {wanted[first].item()}"
                )
    return wrong, times


def _numbers(size: int, repeat: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size * 1000 + repeat * 100 + rank)
    return torch.randint(-LARGEST, LARGEST, (size,), generator=generator).float()


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
