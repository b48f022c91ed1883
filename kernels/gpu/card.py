"""What a program asks of CUDA itself: memory for copies, copies, graphs. Nothing else calls it.

Not run on hardware. Tests put a card without CUDA in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Card(Protocol):
    """One device and its current stream."""

    @property
    def device(self) -> torch.device: ...

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """Memory uint8 `[nbytes]` of the host from which `upload` copies."""
        ...

    def upload(self, host: torch.Tensor, there: torch.Tensor) -> None:
        """Begin to copy; work that is started later finds the copy."""
        ...

    def wait_for_upload(self) -> None:
        """Wait until what `upload` was given last may be written again."""
        ...

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Call `run` once without doing what it starts; return what does all of that again."""
        ...


class CudaCard:
    """A CUDA device by its index among those that this process sees."""

    def __init__(self, index: int) -> None:
        """Make it the device of this process."""
        torch.cuda.set_device(index)
        self.device = torch.device("cuda", index)
        self._copied = torch.cuda.Event()
        # Graphs that run one after the other can share the memory of their temporaries.
        self._pool = torch.cuda.graph_pool_handle()

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """See Card: pinned, so that copies do not wait for the host."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, host: torch.Tensor, there: torch.Tensor) -> None:
        """See Card."""
        there.copy_(host, non_blocking=True)
        self._copied.record()

    def wait_for_upload(self) -> None:
        """See Card."""
        self._copied.synchronize()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """See Card: a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        # Threads of libraries, as NCCL's watchdog, may go on calling CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph.replay
