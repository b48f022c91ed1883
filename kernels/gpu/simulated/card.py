"""A card without CUDA: what a program asks of one, done on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from ..card import CardMemory


class SimulatedCard:
    """Copies at once; a graph is the same launches over the same tensors. Memory of the host that
    is copied to holds nothing of use before `wait`."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.uploads: list[int] = []
        self.downloads: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.graphs = self.replays = self.waits = 0
        self._copying = False

    def identity(self) -> str:
        return f"process {os.getpid()}"

    def memory(self) -> CardMemory:
        return CardMemory(total=24 << 30, free=23 << 30, allocated=0)

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def upload(self, host: torch.Tensor, there: torch.Tensor) -> None:
        self.uploads.append(host.nbytes)
        there.copy_(host)
        self._copying = True

    def wait_for_upload(self) -> None:
        self.waits += self._copying
        self._copying = False

    def download(self, there: torch.Tensor, host: torch.Tensor) -> None:
        host.view(torch.uint8).fill_(0xFF)
        self.downloads.append((there, host))

    def wait(self) -> None:
        self.waits += 1
        self._copying = False
        for there, host in self.downloads:
            host.copy_(there)
        self.downloads.clear()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.graphs += 1

        def replay() -> None:
            self.replays += 1
            run()

        return replay
