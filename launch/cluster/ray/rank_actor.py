"""The Ray actor that becomes a rank in two phases: first it says where it is, then it runs."""

from __future__ import annotations

from typing import Any

from .versions import reporter


def rank_actor_class() -> type[Any]:
    """The class of actors. Ray sends it by value: a host without isobit can still `describe`."""
    report = reporter()

    class RankActor:
        """One process of one rank."""

        def describe(self) -> dict[str, Any]:
            """Fields of a HostReport, and of the GPUs Ray gave: their ids, and what is visible."""
            import os

            import ray

            return {
                "report": report(),
                "gpu_ids": ray.get_runtime_context().get_accelerator_ids().get("GPU", []),
                "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            }

        def run(self, ticket: dict[str, Any]) -> None:
            """Live as a rank until the driver says stop."""
            import os
            import threading

            from ....runtime.transport.heartbeat import DRIVER_RETURNS_S
            from ....runtime.transport.ticket import RankTicket
            from ....runtime.worker.process import name_process, run_rank
            from ...models import download_files

            given = RankTicket(**ticket)
            name_process(given)
            try:
                run_rank(given, download_files)
            finally:
                # The driver ends this process now, unless a cable is cut: then nobody would.
                ending = threading.Timer(DRIVER_RETURNS_S, os._exit, (0,))
                ending.daemon = True
                ending.start()

    return RankActor


def device_index(gpu_id: str, visible: str | None) -> int:
    """The index that torch gives the GPU that Ray calls `gpu_id`.

    Ray names a GPU as CUDA_VISIBLE_DEVICES of its host does, where that is set; torch counts what
    is visible from 0.
    """
    return int(gpu_id) if visible is None else visible.split(",").index(gpu_id)
