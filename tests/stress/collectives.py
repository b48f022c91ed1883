"""Many sums over shared memory with random sizes and skew, each equal to the tree, bit for bit.

`python -m tests.stress.collectives CALLS`: they are shared out over degrees 2, 3 and 4. Ends with
status 1 at the first difference.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from isobit.runtime.collectives.measure import plan_of_atoms
from isobit.runtime.collectives.shared import SharedCollectives, SharedSettings
from isobit.runtime.collectives.tree import sum_root
from isobit.runtime.transport import rendezvous
from isobit.shard.plan.atoms import complete_subtrees
from isobit.shard.plan.plan import ShardPlan

from ..distributed.forked import run_group
from ..distributed.numbers import wild

ATOMS = 8
MOST = 6000
OFFSETS = 4096
# Small slots, so that a good part of the calls goes in chunks and by stripes.
SETTINGS = SharedSettings(slot_bytes=16 << 10, two_shot_bytes=4 << 10, timeout_s=30)
BETWEEN_REPORTS = 100_000


def run_rank(folder: Path, plan: ShardPlan, calls: int, rank: int) -> None:
    """Ranks draw the same sizes and offsets, and each its own skew."""
    rendezvous.join(f"file://{folder / 'rendezvous'}", rank, plan.degree)
    collectives = SharedCollectives(plan, rank, SETTINGS)
    nodes = [complete_subtrees(plan.atoms, plan.owned(r)) for r in range(plan.degree)]
    table = torch.from_numpy(wild((sum(map(len, nodes)), MOST + OFFSETS), seed=plan.degree))
    first = sum(map(len, nodes[:rank]))
    own = table[first : first + len(nodes[rank])]
    known = [node for theirs in nodes for node in theirs]
    wanted = sum_root(known, table.unbind(), plan.atoms)
    shared, private = random.Random(0), random.Random(rank + 1)
    for number in range(1, calls + 1):
        size = int(MOST ** shared.random())
        offset = shared.randrange(OFFSETS)
        out = torch.full((1, size), float("nan"))
        if private.random() < 0.01:
            time.sleep(private.uniform(0, 200e-6))
        piece = own[:, None, offset : offset + size].contiguous()
        collectives.all_reduce(piece, out, "stress")
        if not torch.equal(out[0], wanted[offset : offset + size]):
            raise AssertionError(f"rank {rank} of {plan.degree}: sum {number} of {size} differs")
        if rank == 0 and number % BETWEEN_REPORTS == 0:
            print(f"degree {plan.degree}: {number} sums", flush=True)
    (folder / f"done-{rank}").touch()
    collectives.close()


def main() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    calls, good = int(sys.argv[1]), True
    for degree in (2, 3, 4):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = partial(run_rank, Path(folder), plan_of_atoms(degree, ATOMS), calls // 3)
            run_group(degree, run, most_seconds=3600)
            done = len(list(Path(folder).glob("done-*"))) == degree
        good = good and done
        seconds = time.perf_counter() - started
        print(f"degree {degree}: {'right' if done else 'WRONG'}, {seconds:.1f} s", flush=True)
    sys.exit(not good)


main()
