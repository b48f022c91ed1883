"""A rank of a calibration as a process of its own: threads, collectives, requests as messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from ...kernels import ops
from ...shard.model.spec import read_spec
from ...shard.plan.plan import PlanSettings, make_plan
from ..affinity import share_cores
from ..collectives.choose import choose
from ..transport import rendezvous
from .job import job_from_message
from .rank import CalibrationRank

COLLECTIVE_TIMEOUT_S = 1800.0
"""How long ranks wait for one that adds a long sample to a large Hessian."""


class CalibrationWorker:
    """Joins the other ranks, then hands requests to a CalibrationRank."""

    def __init__(self, message: dict[str, Any]) -> None:
        """Raises what joining and CalibrationRank raise."""
        torch.set_num_threads(1)
        job, rank = job_from_message(message["job"]), message["rank"]
        hosts: list[str] = message["hosts"]
        threads, _ = share_cores(hosts, rank)
        ops.set_threads(threads)
        rendezvous.join(message["rendezvous"], rank, job.degree, COLLECTIVE_TIMEOUT_S, hosts=hosts)
        plan = make_plan(read_spec(job.model), PlanSettings(degree=job.degree))
        choice = choose("auto", plan, rank, hosts=hosts, timeout_s=COLLECTIVE_TIMEOUT_S)
        self._rank = CalibrationRank(job, rank, choice.collectives)
        self.report = self._rank.described()

    def answers(self, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the answer to one request."""
        yield {"kind": "stepped", **self._rank.answer(message["request"])}

    def close(self) -> None:
        """Let the other ranks go."""
        self._rank.close()
        self._rank.collectives.close()
        if dist.is_initialized():
            dist.destroy_process_group()
