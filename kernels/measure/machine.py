"""What the machine can do at this moment: bytes read from memory, operations in registers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from ..native import native
from ..weights.memory import streamed

MEMORY_BYTES = 1 << 29
PEAK_ROUNDS = 200_000


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Measures with the threads that `set_threads` gave to kernels. Takes 512 MiB of memory."""

    memory: torch.Tensor = field(
        default_factory=lambda: streamed((MEMORY_BYTES // 4,), torch.int32).fill_(1)
    )

    def bytes_per_second(self) -> float:
        """One reading of memory, far larger than the caches."""
        started = time.perf_counter()
        native().read_memory(self.memory.data_ptr(), self.memory.nbytes)
        return self.memory.nbytes / (time.perf_counter() - started)

    def operations_per_second(self, threads: int) -> float:
        """Multiplications and additions in registers, by the widest instruction of linear."""
        started = time.perf_counter()
        operations = native().peak(PEAK_ROUNDS, threads)
        return operations / (time.perf_counter() - started)
