"""A card without CUDA: what a program asks of one, done on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


class SimulatedCard:
    """Copies at once; a graph is the same launches over the same tensors."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.uploads: list[int] = []
        self.graphs = self.replays = 0

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def upload(self, host: torch.Tensor, there: torch.Tensor) -> None:
        self.uploads.append(host.nbytes)
        there.copy_(host)

    def wait_for_upload(self) -> None:
        """Copies have ended when they return."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.graphs += 1

        def replay() -> None:
            self.replays += 1
            run()

        return replay
