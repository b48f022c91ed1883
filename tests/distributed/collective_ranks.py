"""The ranks of test_collectives.py: `python -m tests.distributed.collective_ranks FOLDER...`.

Each folder is one group of ranks. It holds plan.json and partials.npy, float32 [calls, atoms, rows,
columns]; the results go there too. In a folder named "leave" the last rank is gone before the
second call. Processes are forked, so that torch is imported once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from isobit.kernels.errors import RankFault
from isobit.runtime import rendezvous
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.collectives.tree import sum_subtrees
from isobit.shard.plan import ShardPlan

MOST_SECONDS = 45


def run_rank(folder: Path, plan: ShardPlan, rank: int) -> None:
    rendezvous.join(f"file://{folder / 'rendezvous'}", rank, plan.degree)
    collectives = GatherCollectives(plan, rank)
    calls = torch.from_numpy(np.load(folder / "partials.npy"))
    owned = plan.owned(rank)
    sums = []
    for number, partials in enumerate(calls[:, owned.start : owned.stop], 1):
        if folder.name == "leave" and number == 2 and rank == plan.degree - 1:
            return
        try:
            nodes = torch.stack(sum_subtrees(partials, owned, plan.atoms))
            out = torch.empty_like(nodes[0])
            collectives.all_reduce(nodes, out, f"site {number}")
            sums.append(out)
        except RankFault as fault:
            (folder / f"fault-{rank}.txt").write_text(f"{fault.code} {fault.message}")
            return
    np.save(folder / f"sums-{rank}.npy", torch.stack(sums).numpy())
    mine = torch.tensor([[rank, -rank], [10 * rank, 1]], dtype=torch.bfloat16)
    gathered = mine.new_empty(plan.degree, *mine.shape)
    collectives.all_gather(mine, gathered, "gather")
    np.save(folder / f"gathered-{rank}.npy", gathered.float().numpy())


def fork_rank(folder: Path, plan: ShardPlan, rank: int) -> int:
    child = os.fork()
    if child:
        return child
    # A hanging rank ends by this signal, whatever it waits for.
    signal.alarm(MOST_SECONDS)
    try:
        run_rank(folder, plan, rank)
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        plan = ShardPlan.from_dict(json.loads((folder / "plan.json").read_text()))
        for child in [fork_rank(folder, plan, rank) for rank in range(plan.degree)]:
            os.waitpid(child, 0)


main()
