"""Which collectives ranks on CUDA devices use: one answer, the same on every rank."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import torch

from isobit.errors import EnvironmentFault

from ....kernels.gpu.jit.peers import LANES
from ....shard.plan.plan import ShardPlan
from ...transport.process_group import exchange
from ..choice import Choice, chosen, self_tested
from ..interface import Mode
from ..library import LibraryCollectives
from ..shared import SharedSettings
from .custom import CustomCollectives, KernelSettings
from .driver import CudaDriver, Driver
from .gather import CudaGatherCollectives
from .probe import probe_peers
from .regions import Transport

log = logging.getLogger("isobit.runtime")

SELF_TEST_S = 10.0
"""How long a call of the self-test waits: on a sound machine microseconds."""
NO_PEERS = "NCCL_P2P_DISABLE"
PEER_HELP = (
    "Where GPUs cannot read each other although CUDA says so, as on RTX 3090s, PCIe ACS or the "
    "IOMMU is in the way: switch ACS off in the BIOS, boot with iommu=pt, or set "
    f"{NO_PEERS}=1, which leaves peer memory out at once"
)


ENDS_KERNELS = (
    "cuda:{index} drives a display: CUDA ends its kernels after some seconds, and the rank "
    "with them, while a sum waits up to {seconds:g} s for a late rank. Let another "
    "card drive the display, or none"
)


def choose_on_cuda(
    mode: Mode,
    plan: ShardPlan,
    rank: int,
    obstacles: str,
    *,
    timeout_s: float,
    device: torch.device,
    driver: Driver | None = None,
    settings: KernelSettings | None = None,
) -> Choice:
    """Agree with all ranks of the default process group, which has gloo for tensors on CPUs.

    All have been told the same mode. "auto" takes the custom ones unless there are `obstacles`,
    the same text everywhere: over the memory of the devices where all reach each other, else over
    pinned memory of the host; the self-test has to pass everywhere. Otherwise ranks gather through
    NCCL.

    Raises, on every rank alike, EnvironmentFault E-COLL-CUSTOM when "custom" was asked for and
    cannot work, E-COLL-NCCL where NCCL is left and two ranks share a device; RankFault
    E-COLL-FAILED when a rank is gone.
    """
    driver = driver or CudaDriver(device)

    def tell(text: str) -> list[str]:
        return exchange(text, rank, plan.degree, "choosing collectives")

    if mode == "hierarchical":
        raise EnvironmentFault(
            "E-COLL-CUSTOM",
            "hierarchical collectives add up on CPUs, the ranks are on CUDA devices. Take gather",
        )
    if mode in ("gather", "library"):
        return _over_nccl(mode, plan, rank, "asked for", tell(driver.identity()), device)
    if plan.degree == 1 and mode == "auto":
        return chosen(CudaGatherCollectives(plan, rank), "gather", "a single rank")
    if not obstacles and plan.degree > LANES:
        obstacles = f"{plan.degree} ranks share a host, the kernel takes {LANES}"
    if obstacles:
        if mode == "custom":
            raise EnvironmentFault(
                "E-COLL-CUSTOM", f"{obstacles}. Run without asking for custom collectives"
            )
        return _over_nccl("gather", plan, rank, obstacles, tell(driver.identity()), device)
    why = "asked for" if mode == "custom" else "all ranks share a host"
    refused = unreachable(device.index or 0, driver, tell)
    faults = []
    if not refused and plan.degree > 1 and (found := probe_peers(driver, rank, plan.degree, tell)):
        refused = f"peer memory failed: E-COLL-CUDA {found}. {PEER_HELP}"
        log.warning("no collectives over peer memory: %s", refused)
        faults.append(refused)
    if driver.ends_long_kernels():
        log.warning("%s", ENDS_KERNELS.format(index=device.index or 0, seconds=timeout_s))
    for transport in transports(refused):
        reason = f"{why}, over {transport}" + (f" since {refused}" if refused else "")
        try:
            return _custom(plan, rank, transport, reason, timeout_s, device, driver, settings)
        except EnvironmentFault as fault:
            log.warning("no collectives over %s: %s", transport, fault)
            help_text = f". {PEER_HELP}" if transport == "peer memory" else ""
            refused = f"{transport} failed: {fault}{help_text}"
            faults.append(refused)
    if mode == "custom":
        raise EnvironmentFault("E-COLL-CUSTOM", "\n".join(faults))
    return _over_nccl("gather", plan, rank, "; ".join(faults), tell(driver.identity()), device)


def unreachable(index: int, driver: Driver, tell: Callable[[str], Sequence[str]]) -> str:
    """Why ranks do not try to read each other's device memory; empty where all may be able to."""
    disabled = os.environ.get(NO_PEERS, "0") not in ("", "0")
    indices = [int(text) for text in tell(str(index))]
    wrong = f"{NO_PEERS} is set" if disabled else ""
    if not wrong and (
        closed := [peer for peer, each in enumerate(indices) if driver.reaches(each) is False]
    ):
        peers = ", ".join(f"rank {peer} (cuda:{indices[peer]})" for peer in closed)
        wrong = f"cuda:{index} cannot read the memory of {peers}"
    return "; ".join(f"rank {peer}: {text}" for peer, text in enumerate(tell(wrong)) if text)


def transports(unreachable: str) -> list[Transport]:
    """What to try, in this order."""
    return ["host memory"] if unreachable else ["peer memory", "host memory"]


def _custom(
    plan: ShardPlan,
    rank: int,
    transport: Transport,
    reason: str,
    timeout_s: float,
    device: torch.device,
    driver: Driver,
    settings: KernelSettings | None,
) -> Choice:
    settings = settings or KernelSettings()
    collectives = CustomCollectives(
        plan,
        rank,
        device=device,
        driver=driver,
        transport=transport,
        timeout_s=min(timeout_s, SELF_TEST_S),
        settings=settings,
    )
    # Around one block and around one round of all programs.
    sizes = SharedSettings(
        slot_bytes=4 * settings.programs * settings.block * collectives.most_planes,
        two_shot_bytes=4 * settings.block,
    )
    choice = self_tested(collectives, "custom", plan, rank, sizes, reason, device)
    collectives.set_timeout(timeout_s)
    return choice


def _over_nccl(
    mode: Mode,
    plan: ShardPlan,
    rank: int,
    reason: str,
    identities: Sequence[str],
    device: torch.device,
) -> Choice:
    """Raises EnvironmentFault E-COLL-NCCL where two ranks have one device."""
    for card in identities:
        if identities.count(card) > 1:
            ranks = ", ".join(str(peer) for peer, each in enumerate(identities) if each == card)
            raise EnvironmentFault(
                "E-COLL-NCCL",
                f"ranks {ranks} share the GPU {card}, which NCCL refuses ({reason}). Give each "
                "rank a GPU of its own, or run with --all-reduce custom",
            )
    gather = CudaGatherCollectives(plan, rank)
    gather.start(device)
    if mode == "library":
        return chosen(LibraryCollectives(plan, rank), "library", reason)
    return chosen(gather, "gather", reason)
