"""The ranks of test_collectives.py.

    python -m tests.distributed.collectives.collective_ranks FOLDER...

Each folder is one group of ranks. It holds plan.json and partials.npy, float32 [calls, atoms, rows,
columns]; the results go there too. In a folder named "leave" the last rank is gone before the
second call. Processes are forked, so that torch is imported once.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from isobit.errors import RankFault
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.collectives.library import LibraryCollectives
from isobit.runtime.collectives.tree import sum_subtrees
from isobit.runtime.transport import rendezvous
from isobit.shard.plan.plan import ShardPlan

from ..forked import run_group


def run_rank(folder: Path, plan: ShardPlan, rank: int) -> None:
    rendezvous.join(f"file://{folder / 'rendezvous'}", rank, plan.degree)
    collectives = GatherCollectives(plan, rank)
    calls = torch.from_numpy(np.load(folder / "partials.npy"))
    owned = plan.owned(rank)
    sums = []
    for number, partials in enumerate(calls[:, owned.start : owned.stop], 1):
        if folder.name == "leave" and number == 2 and rank == plan.degree - 1:
            return
        nodes = torch.stack(sum_subtrees(partials, owned, plan.atoms))
        sums.append(torch.empty_like(nodes[0]))
        try:
            collectives.all_reduce(nodes, sums[-1], f"site {number}")
        except RankFault as fault:
            (folder / f"fault-{rank}.txt").write_text(f"{fault.code} {fault.message}")
            return
    np.save(folder / f"sums-{rank}.npy", torch.stack(sums).numpy())
    mine = torch.tensor([[rank, -rank], [10 * rank, 1]], dtype=torch.bfloat16)
    gathered = mine.new_empty((plan.degree, 2, 2))
    collectives.all_gather(mine, gathered, "gather")
    np.save(folder / f"gathered-{rank}.npy", gathered.float().numpy())
    library = LibraryCollectives(plan, rank)
    library.all_reduce(nodes, sums[-1], "library")
    np.save(folder / f"library-{rank}.npy", sums[-1].numpy())


def main() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        plan = ShardPlan.from_dict(json.loads((folder / "plan.json").read_text()))
        run_group(plan.degree, partial(run_rank, folder, plan))


main()
