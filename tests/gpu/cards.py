"""The card of a test: a real one where there is one. What is asked of it is counted."""

from __future__ import annotations

from collections.abc import Callable

import torch

from isobit.kernels.gpu.card import Card, CardMemory, CudaCard
from isobit.kernels.gpu.simulated.card import SimulatedCard


class CountingCard:
    """`waits`: how often the host waited for the device, in vain or not."""

    def __init__(self) -> None:
        self._card: Card = CudaCard(0) if torch.cuda.is_available() else SimulatedCard()
        self.device = self._card.device
        self.uploads = self.downloads = self.waits = self.graphs = self.replays = 0
        self._copying = False

    def identity(self) -> str:
        return self._card.identity()

    def memory(self) -> CardMemory:
        return self._card.memory()

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return self._card.host_memory(nbytes)

    def upload(self, host: torch.Tensor, there: torch.Tensor) -> None:
        self.uploads += 1
        self._copying = True
        self._card.upload(host, there)

    def wait_for_upload(self) -> None:
        self.waits += self._copying
        self._copying = False
        self._card.wait_for_upload()

    def download(self, there: torch.Tensor, host: torch.Tensor) -> None:
        self.downloads += 1
        self._card.download(there, host)

    def wait(self) -> None:
        self.waits += 1
        self._copying = False
        self._card.wait()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.graphs += 1
        again = self._card.capture(run)

        def replay() -> None:
            self.replays += 1
            again()

        return replay
