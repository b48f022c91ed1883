"""How fast the collectives are on this host: all modes in one run, on the same processes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isobit.errors import EnvironmentFault, InputError, RankFault

from ...shard.plan.plan import MOST_ATOMS, Dimension, ShardPlan
from .gather import GatherCollectives
from .interface import Collectives
from .library import LibraryCollectives
from .shared import SharedCollectives

SIZES = (64, 512, 4096, 8192, 20480, 32768, 65536, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 25)
ROUNDS = 4
MOST_SECONDS = 120
# What one size of one mode may take in all rounds, and how many calls are enough.
SECONDS_PER_SIZE = 0.7
MOST_CALLS = 2000
FEWEST_CALLS = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """Times of one all_reduce as rank 0 sees it. `gb_s` is `bytes` over the median, in 10^9/s.

    `bytes` is the message of a rank, float32 [T, N], after it has summed its own atoms.
    """

    mode: str
    bytes: int
    p50_us: float
    p99_us: float
    gb_s: float


def even_plan(degree: int) -> ShardPlan:
    """A plan in which every rank owns exactly one complete subtree."""
    return plan_of_atoms(degree, 1 << (degree - 1).bit_length())


def plan_of_atoms(degree: int, atoms: int) -> ShardPlan:
    """A plan of which only the atoms matter."""
    dimension = Dimension(true=atoms, padded=atoms, unit=1, atom_sizes=(1,) * atoms)
    return ShardPlan(
        degree=degree,
        atoms=atoms,
        layout="pad",
        intermediate=dimension,
        heads=dimension,
        vocab=dimension,
        head_size=1,
        queries_per_kv=1,
    )


def measure(degree: int, sizes: Sequence[int] = SIZES) -> list[Row]:
    """Start `degree` processes on this host and measure every mode at message sizes in bytes.

    Raises InputError E-PLAN-DEGREE; EnvironmentFault E-COLL-SHM where shared memory is too small;
    RankFault E-RANK-FAILED or E-RANK-TIMEOUT when a process ends badly or late.
    """
    if not 1 <= degree <= MOST_ATOMS:
        raise InputError(
            "E-PLAN-DEGREE", f"tensor-parallel size {degree} is not between 1 and {MOST_ATOMS}"
        )
    with tempfile.TemporaryDirectory() as folder:
        ranks = [_start(Path(folder), rank, degree, sizes) for rank in range(degree)]
        try:
            output, _ = ranks[0].communicate(timeout=MOST_SECONDS)
            statuses = [process.wait(timeout=MOST_SECONDS) for process in ranks]
        except subprocess.TimeoutExpired as error:
            raise RankFault("E-RANK-TIMEOUT", f"no result within {MOST_SECONDS} s") from error
        finally:
            for process in ranks:
                process.kill()
    if any(statuses):
        raise RankFault("E-RANK-FAILED", f"the ranks ended with {statuses}; see above")
    found = json.loads(output)
    if "error" in found:
        raise EnvironmentFault(**found["error"])
    return [Row(**row) for row in found["rows"]]


def _start(folder: Path, rank: int, degree: int, sizes: Sequence[int]) -> subprocess.Popen[str]:
    numbers = [str(rank), str(degree), ",".join(map(str, sizes))]
    return subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.measure_rank", str(folder), *numbers],
        stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        text=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )


def measure_as_rank(plan: ShardPlan, rank: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The part of one rank; the process group is joined."""
    modes: dict[str, Collectives] = {
        "custom": SharedCollectives(plan, rank),
        "gather": GatherCollectives(plan, rank),
        "library": LibraryCollectives(plan, rank),
    }
    rows = []
    for size in sizes:
        nodes = torch.full((1, 1, size // 4), float(rank))
        out = torch.empty(1, size // 4)
        for name, times in _interleaved(modes, nodes, out, plan.degree).items():
            median = statistics.median(times)
            late = times[min(len(times) - 1, len(times) * 99 // 100)]
            rows.append(
                {
                    "mode": name,
                    "bytes": size,
                    "p50_us": round(median / 1000, 2),
                    "p99_us": round(late / 1000, 2),
                    "gb_s": round(size / median, 3),
                }
            )
    for collectives in modes.values():
        collectives.close()
    return rows


def _interleaved(
    modes: dict[str, Collectives], nodes: torch.Tensor, out: torch.Tensor, degree: int
) -> dict[str, list[int]]:
    """Sorted nanoseconds per call of each mode; the modes take turns, so that noise hits all."""
    calls = {name: _enough_calls(mode, nodes, out, degree) for name, mode in modes.items()}
    times: dict[str, list[int]] = {name: [] for name in modes}
    for _ in range(ROUNDS):
        for name, mode in modes.items():
            mode.all_reduce(nodes, out, "measure")
            for _ in range(calls[name]):
                started = time.perf_counter_ns()
                mode.all_reduce(nodes, out, "measure")
                times[name].append(time.perf_counter_ns() - started)
    return {name: sorted(values) for name, values in times.items()}


def _enough_calls(mode: Collectives, nodes: torch.Tensor, out: torch.Tensor, degree: int) -> int:
    """Calls per round, agreed on by all ranks: the slowest rank's view counts."""
    mode.all_reduce(nodes, out, "trial")
    started = time.perf_counter()
    for _ in range(3):
        mode.all_reduce(nodes, out, "trial")
    seconds = torch.tensor([(time.perf_counter() - started) / 3], dtype=torch.float64)
    everyone = torch.empty(degree, 1, dtype=torch.float64)
    mode.all_gather(seconds, everyone, "trial")
    enough = SECONDS_PER_SIZE / ROUNDS / everyone.max().item()
    return int(max(FEWEST_CALLS / ROUNDS, min(MOST_CALLS / ROUNDS, enough)))
