"""The ranks of test_cuda.py, as in shared_ranks: kernels run in Triton's interpreter, over memory
that the processes share, and gloo stands for NCCL.

With ISOBIT_TEST_CARD=1 the scenario "sums" runs on the first GPU, which all ranks share.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0" if os.environ.get("ISOBIT_TEST_CARD") == "1" else "1"

import torch

from isobit.errors import IsobitError
from isobit.kernels.gpu.simulated.interpreter import install
from isobit.runtime.collectives import self_test
from isobit.runtime.collectives.cuda import choose as cuda_choose
from isobit.runtime.collectives.cuda.child import Child
from isobit.runtime.collectives.cuda.custom import CustomCollectives, KernelSettings
from isobit.runtime.collectives.cuda.driver import CudaDriver
from isobit.runtime.collectives.cuda.gather import CudaGatherCollectives
from isobit.runtime.collectives.cuda.probe import probe_peers
from isobit.runtime.collectives.cuda.simulated import FileDriver
from isobit.runtime.collectives.measure import plan_of_atoms
from isobit.runtime.collectives.tree import sum_subtrees
from isobit.runtime.transport import rendezvous
from isobit.runtime.transport.process_group import exchange
from isobit.shard.plan.atoms import complete_subtrees
from isobit.shard.plan.plan import ShardPlan

from ..forked import run_group
from ..numbers import numpy_tree, wild

WIDTH = 11
ROWS = (5, 1, 0, 9)
ON_CARD = os.environ["TRITON_INTERPRET"] == "0"
DEVICE = torch.device("cuda", 0) if ON_CARD else torch.device("cpu")
SMALL = KernelSettings(programs=2, block=16)


def own_nodes(plan: ShardPlan, rank: int, leaves: Any) -> torch.Tensor:
    owned = plan.owned(rank)
    partials = torch.from_numpy(leaves[owned.start : owned.stop])
    return torch.stack(sum_subtrees(partials, owned, plan.atoms))


def differing(collectives: Any, plan: ShardPlan, rank: int) -> list[str]:
    """Sums that are not numpy's tree, and gathers that are not what was sent."""
    wrong = []
    for number, rows in enumerate(ROWS):
        leaves = wild((plan.atoms, rows, WIDTH), seed=number)
        out = torch.full((rows, WIDTH), float("nan"), device=DEVICE)
        nodes = own_nodes(plan, rank, leaves).to(DEVICE)
        collectives.all_reduce(nodes, out, f"site {number}")
        if out.cpu().numpy().tobytes() != numpy_tree(leaves).tobytes():
            wrong.append(f"sum of {rows} rows")
        everyone = torch.from_numpy(wild((plan.degree, rows, 3), seed=number)).bfloat16()
        everyone = everyone.to(DEVICE)
        gathered = torch.zeros_like(everyone)
        collectives.all_gather(everyone[rank].contiguous(), gathered, "gather")
        if not torch.equal(gathered, everyone):
            wrong.append(f"gather of {rows} rows")
    collectives.check()
    return wrong


def again(collectives: CustomCollectives, plan: ShardPlan, rank: int) -> list[str]:
    """What a CUDA graph does: start the same kernels over the same memory, again and again."""
    leaves = wild((plan.atoms, 3, WIDTH), seed=0)
    nodes = own_nodes(plan, rank, leaves).to(DEVICE)
    out = torch.empty(3, WIDTH, device=DEVICE)
    launches = [collectives.all_reduce_launches(nodes, out, f"layer {i}")[0] for i in range(3)]
    wrong = []
    for number in range(1, 7):
        leaves = wild((plan.atoms, 3, WIDTH), seed=number)
        nodes.copy_(own_nodes(plan, rank, leaves))
        launches[number % 3].run()
        if out.cpu().numpy().tobytes() != numpy_tree(leaves).tobytes():
            wrong.append(f"replay {number}")
    collectives.check()
    return wrong


def sums(plan: ShardPlan, rank: int, folder: Path, _: dict[str, Any]) -> dict[str, Any]:
    """Bits over each transport, and over NCCL's stand-in."""
    found: dict[str, Any] = {}
    if not ON_CARD:  # NCCL refuses ranks that share a GPU
        found["gather"] = differing(CudaGatherCollectives(plan, rank), plan, rank)
    for transport in ("peer memory", "host memory"):
        driver = CudaDriver(DEVICE) if ON_CARD else FileDriver(folder, rank)
        collectives = CustomCollectives(
            plan, rank, device=DEVICE, driver=driver, transport=transport, timeout_s=20,
            settings=SMALL,
        )  # fmt: skip
        found[transport] = differing(collectives, plan, rank) + again(collectives, plan, rank)
        collectives.close()
        collectives.close()
        if isinstance(driver, FileDriver):
            found[f"{transport} closed"] = len(driver.closed)
    if ON_CARD:
        found["probe"] = probe_peers(
            CudaDriver(DEVICE),
            rank,
            plan.degree,
            lambda text: exchange(text, rank, plan.degree, ""),
        )
    return found


def trouble(plan: ShardPlan, rank: int, folder: Path, job: dict[str, Any]) -> list[Any]:
    """The third call goes wrong on the last rank; returns how it and the fourth end."""
    timeout_s = job.get("timeouts", {}).get(str(rank), 20)
    collectives = CustomCollectives(
        plan, rank, device=DEVICE, driver=FileDriver(folder, rank), transport="host memory",
        timeout_s=20, settings=SMALL,
    )  # fmt: skip
    results = []
    for number in (1, 2, 3, 4):
        rows, site = 2, f"layers.{number}.out"
        if number == 3:  # The first calls of a process take what time they take.
            collectives.set_timeout(timeout_s)
        if rank == plan.degree - 1 and number == 3:
            match job["trouble"]:
                case "late":
                    time.sleep(2)
                case "size":
                    rows = 3
                case "site":
                    site = "layers.4.out"
        count = len(complete_subtrees(plan.atoms, plan.owned(rank)))
        nodes, out = torch.ones(count, rows, 8), torch.empty(rows, 8)
        started = time.monotonic()
        collectives.all_reduce(nodes, out, site)
        try:
            collectives.check()
            results.append(None)
        except IsobitError as fault:
            results.append([fault.code, fault.message, time.monotonic() - started])
    return results


def choice(plan: ShardPlan, rank: int, folder: Path, job: dict[str, Any]) -> list[Any]:
    """What is chosen in each mode, or how choosing fails."""
    cuda_choose.SELF_TEST_S = job.get("self_test_s", 20)
    Child.ask.__defaults__ = (job.get("probe_s", 20),)
    os.environ |= job.get("environment", {}) if rank == 0 else {}
    if not job.get("whole_self_test"):
        self_test.REPEATS, self_test.reduce_sizes = 1, lambda *_: [17]
    results = []
    for number, mode in enumerate(job["modes"]):
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        driver = FileDriver(place, rank, job.get("trouble", ""), job.get("one_gpu", False))
        try:
            chosen = cuda_choose.choose_on_cuda(
                mode, plan, rank, job.get("apart", ""), timeout_s=20,
                device=torch.device("cpu", rank), driver=driver, settings=SMALL,
            )  # fmt: skip
        except IsobitError as fault:
            results.append([fault.code, fault.message])
            continue
        nodes, out = own_nodes(plan, rank, wild((8, 1, 3), 0)), torch.empty(1, 3)
        chosen.collectives.all_reduce(torch.ones_like(nodes), out, "after")
        chosen.collectives.check()
        assert len(set(out.flatten().tolist())) == 1
        results.append([chosen.name, chosen.reason, chosen.self_test, chosen.invariant])
        chosen.collectives.close()
    return results


SCENARIOS = {"sums": sums, "trouble": trouble, "choice": choice}


def run_rank(folder: Path, job: dict[str, Any], rank: int) -> None:
    plan = plan_of_atoms(job["degree"], 8)
    rendezvous.join(f"file://{folder / 'rendezvous'}", rank, plan.degree)
    if ON_CARD:
        torch.cuda.set_device(DEVICE)
    result = SCENARIOS[job["scenario"]](plan, rank, folder, job)
    (folder / f"result-{rank}.json").write_text(json.dumps(result))


def main() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if not ON_CARD:
        install()
    for folder in map(Path, sys.argv[1:]):
        job = json.loads((folder / "job.json").read_text())
        run_group(job["degree"], partial(run_rank, folder, job))


main()
