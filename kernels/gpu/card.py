"""What a program asks of CUDA itself: memory for copies, copies, graphs. Nothing else calls it.

Not run on hardware. Tests put a card without CUDA in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from isobit.errors import RankFault

MOST_SAMPLED = 64
"""Rows of a step that are sampled at most: a row of logits is large, and there is memory for these
alone. More sequences take turns."""
MOST_GRAPHS = 24
"""Graphs of decode that are kept, the padded numbers of rows times a few lengths. The one that has
not been used for longest goes."""


@dataclass(frozen=True, kw_only=True)
class CardMemory:
    """Bytes of one device. `allocated` is what this process holds in tensors; `free` is what no
    process holds."""

    total: int
    free: int
    allocated: int


class Card(Protocol):
    """One device and its current stream."""

    @property
    def device(self) -> torch.device: ...

    def identity(self) -> str:
        """The device, so that two processes know whether they share one."""
        ...

    def memory(self) -> CardMemory:
        """What is in use, once memory that nobody needs any longer has been given back."""
        ...

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """Memory uint8 `[nbytes]` of the host from which `upload` copies."""
        ...

    def upload(self, host: torch.Tensor, there: torch.Tensor) -> None:
        """Begin to copy; work that is started later finds the copy."""
        ...

    def wait_for_upload(self) -> None:
        """Wait until what `upload` was given last may be written again; after `wait` it may."""
        ...

    def download(self, there: torch.Tensor, host: torch.Tensor) -> None:
        """Begin to copy to `host_memory` what work started before leaves."""
        ...

    def wait(self) -> None:
        """Wait until everything that was started has been done. Raises RankFault E-CUDA where the
        device could not do it."""
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
        self._copied, self._copying = torch.cuda.Event(), False
        # Graphs that run one after the other can share the memory of their temporaries.
        self._pool = torch.cuda.graph_pool_handle()

    def identity(self) -> str:
        """See Card."""
        return str(torch.cuda.get_device_properties(self.device).uuid)

    def memory(self) -> CardMemory:
        """See Card."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        allocated = torch.cuda.memory_allocated(self.device)
        return CardMemory(total=total, free=free, allocated=allocated)

    def host_memory(self, nbytes: int) -> torch.Tensor:
        """See Card: pinned, so that copies do not wait for the host."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, host: torch.Tensor, there: torch.Tensor) -> None:
        """See Card."""
        there.copy_(host, non_blocking=True)
        self._copied.record()
        self._copying = True

    def wait_for_upload(self) -> None:
        """See Card."""
        if self._copying:
            with _named_failures(self.device):
                self._copied.synchronize()
        self._copying = False

    def download(self, there: torch.Tensor, host: torch.Tensor) -> None:
        """See Card."""
        host.copy_(there, non_blocking=True)

    def wait(self) -> None:
        """See Card: all work is on one stream."""
        with _named_failures(self.device):
            torch.cuda.current_stream(self.device).synchronize()
        self._copying = False

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """See Card: a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        # Threads of libraries, as NCCL's watchdog, may go on calling CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph.replay


@contextmanager
def _named_failures(device: torch.device) -> Iterator[None]:
    """What CUDA says of a kernel comes with the next wait, and ends the context."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise RankFault(
            "E-CUDA", f"{device} could not do what was started on it: {said}"
        ) from error
