"""Two ranks that share one GPU: the custom all-reduce is right, over both kinds of memory.

`python -m bench.gpu_ranks FOLDER RANK DEGREE` is one of them. Ranks of one GPU take turns on it, so
that times say what waiting for a turn costs, and nothing of two cards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from isobit.kernels.errors import IsobitError
from isobit.runtime import rendezvous
from isobit.runtime.collectives.cuda.custom import CustomCollectives
from isobit.runtime.collectives.cuda.driver import CudaDriver
from isobit.runtime.collectives.cuda.regions import Transport
from isobit.runtime.collectives.measure import plan_of_atoms
from isobit.runtime.collectives.tree import sum_root, sum_subtrees

from .gpu_speed import replay_seconds

TRANSPORTS: tuple[Transport, ...] = ("peer memory", "host memory")
ROWS = (1, 16, 512)
HIDDEN, ATOMS, DEGREE = 5120, 8, 2
REPEATS, TIMED = 5, 20
TIMEOUT_S = 20.0


def planned() -> list[str]:
    return [f"{transport}, {rows} x {HIDDEN}" for transport in TRANSPORTS for rows in ROWS]


def two_ranks(seconds: float) -> dict[str, Any]:
    """Start the ranks, and give what rank 0 found within the time: rows, or an error."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.gpu_ranks", folder, str(rank), str(DEGREE)],
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(DEGREE)
        ]
        try:
            output, _ = ranks[0].communicate(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return {"error": f"no end within {seconds:.0f} s", "rows": []}
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    return read(output)


def read(output: str) -> dict[str, Any]:
    """Rank 0 prints a line of JSON for each thing it has found."""
    lines = [json.loads(line) for line in output.splitlines()]
    rows = [line for line in lines if "transport" in line]
    error = next((line["error"] for line in lines if "error" in line), None)
    if error is None and len(rows) < len(planned()):
        error = f"{len(rows)} of {len(planned())} were measured"
    wrong = [f"{row['transport']}, {row['rows']} rows" for row in rows if not row["same_bits"]]
    if error is None and wrong:
        error = f"not the bits of the tree: {'; '.join(wrong)}"
    return {"error": error, "rows": rows}


def as_rank(folder: str, rank: int, degree: int) -> None:
    """Compare sums with the tree on the CPU, then time a graph of them."""
    torch.cuda.set_device(0)
    rendezvous.join(f"file://{folder}/rendezvous", rank, degree)
    device, plan = torch.device("cuda", 0), plan_of_atoms(degree, ATOMS)
    for transport in TRANSPORTS:
        collectives = CustomCollectives(
            plan, rank, device=device, driver=CudaDriver(device), transport=transport,
            timeout_s=TIMEOUT_S,
        )  # fmt: skip
        for rows in ROWS:
            same = all(_same(collectives, rank, rows, seed) for seed in range(REPEATS))
            collectives.check()
            us = _microseconds(collectives, rank, rows)
            _say({"transport": transport, "rows": rows, "bytes": 4 * rows * HIDDEN,
                  "same_bits": same, "us": us})  # fmt: skip
        collectives.close()


def _leaves(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (ATOMS, rows, HIDDEN)
    return torch.randn(shape, generator=generator) * 2.0 ** torch.randint(
        -12, 12, shape, generator=generator
    )


def _nodes(collectives: CustomCollectives, rank: int, leaves: torch.Tensor) -> torch.Tensor:
    owned = collectives.plan.owned(rank)
    return torch.stack(sum_subtrees(leaves[owned.start : owned.stop], owned, ATOMS)).cuda()


def _same(collectives: CustomCollectives, rank: int, rows: int, seed: int) -> bool:
    leaves = _leaves(rows, seed)
    out = torch.full((rows, HIDDEN), torch.nan, device="cuda")
    collectives.all_reduce(_nodes(collectives, rank, leaves), out, "check")
    wanted = sum_root([(0, ATOMS)], sum_subtrees(leaves, range(ATOMS), ATOMS), ATOMS)
    return torch.equal(out.cpu(), wanted)


def _microseconds(collectives: CustomCollectives, rank: int, rows: int) -> float:
    nodes = _nodes(collectives, rank, _leaves(rows, 0))
    out = torch.empty(rows, HIDDEN, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(TIMED):
            collectives.all_reduce(nodes, out, "timed")
    seconds = replay_seconds(graph)
    collectives.check()
    return seconds * 1e6 / TIMED


def _say(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> None:
    folder, rank, degree = arguments[0], int(arguments[1]), int(arguments[2])
    try:
        as_rank(folder, rank, degree)
    except IsobitError as error:
        _say({"error": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
