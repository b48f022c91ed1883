"""Where a step runs: a GPU, or the simulated one, with the sizes that suit it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from ...kernels.gpu.card import Card, CudaCard
from ...runtime.collectives.cuda.custom import KernelSettings
from ...runtime.collectives.cuda.driver import CudaDriver, Driver
from ...runtime.ranks.launcher import Launcher, LocalLauncher

KINDS = ("int4", "int4 asymmetric", "int4 channel", "int8", "int8 channel", "w8a8", "bfloat16")


class Wrong(Exception):
    """A result is not what it has to be."""


class NotRun(Exception):
    """A step has no meaning here, and says why."""


def require(holds: bool, message: str) -> None:
    """Raise Wrong unless it holds."""
    if not holds:
        raise Wrong(message)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the work of the steps is. A product is `[M, k] x [n, k]`, in groups of `group`."""

    n: int
    k: int
    group: int
    rows: tuple[int, ...]
    many_rows: int
    block_rows: int
    kinds: tuple[str, ...]
    heads: tuple[int, int, int]
    """Query heads, KV heads, head size."""
    context: int
    queries: int
    vocabulary: int
    hidden: int
    head: int
    replays: int
    repeats: int
    sum_rows: tuple[int, ...]
    sum_hidden: int
    shapes: tuple[tuple[int, int], ...]
    copies_bytes: int
    timed: int


CARD = Sizes(
    n=520,
    k=2048,
    group=128,
    rows=(1, 16, 64),
    many_rows=300,
    block_rows=300,
    kinds=KINDS,
    heads=(10, 2, 128),
    context=1500,
    queries=40,
    vocabulary=152064,
    hidden=256,
    head=64,
    replays=20,
    repeats=5,
    sum_rows=(1, 16, 512),
    sum_hidden=5120,
    shapes=((8192, 8192), (13824, 5120), (1024, 5120)),
    copies_bytes=256 << 20,
    timed=20,
)
INTERPRETED = Sizes(
    n=24,
    k=256,
    group=32,
    rows=(1, 9, 17),
    many_rows=66,
    block_rows=9,
    kinds=("int4 asymmetric", "int8", "w8a8"),
    heads=(2, 1, 32),
    context=600,
    queries=3,
    vocabulary=3000,
    hidden=64,
    head=16,
    replays=2,
    repeats=2,
    sum_rows=(1, 16, 512),
    sum_hidden=8,
    shapes=((64, 1024),),
    copies_bytes=0,
    timed=2,
)
SIMULATED_SUMS = KernelSettings(programs=2, block=1024)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The GPUs of all ranks of a step by index, and which of the ranks this process is."""

    gpus: tuple[int, ...]
    rank: int
    folder: Path
    rehearsal: bool

    @property
    def sizes(self) -> Sizes:
        return INTERPRETED if self.rehearsal else CARD

    @property
    def device(self) -> torch.device:
        """Where tensors lie."""
        return torch.device("cpu") if self.rehearsal else torch.device("cuda", self.gpus[self.rank])

    def card(self) -> Card:
        """What a program asks of the GPU."""
        if self.rehearsal:
            from ...kernels.gpu.simulated.card import SimulatedCard

            return SimulatedCard()
        return CudaCard(self.gpus[self.rank])

    def driver(self) -> Driver:
        """What sums ask of the GPU."""
        if self.rehearsal:
            from ...runtime.collectives.cuda.simulated import FileDriver

            return FileDriver(self.folder, self.rank)
        return CudaDriver(self.device)

    def sum_settings(self) -> KernelSettings:
        return SIMULATED_SUMS if self.rehearsal else KernelSettings()

    def launcher(self) -> Launcher:
        """Starts the ranks of an engine on these GPUs."""
        if self.rehearsal:
            from .simulated_ranks import SimulatedLauncher

            memory = self.folder / "memory"
            memory.mkdir(exist_ok=True)
            return SimulatedLauncher(memory)
        return LocalLauncher()

    def seconds(self, calls: Sequence[Callable[[], object]]) -> float:
        """Time of one call: on a GPU the fastest of a few replays of all of them as one graph."""
        if self.rehearsal:
            began = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - began) / len(calls)
        from .timing import graph_seconds

        return graph_seconds(calls)


class Report:
    """What a process of a step has found, written line by line: what is there survives its end."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def row(self, **found: Any) -> None:
        """Something measured or compared."""
        self._write({"row": found})

    def end(self, status: str, what: str = "", how: str = "") -> None:
        """How the step ended: passed, failed or not run."""
        self._write({"end": status, "what": what, "how": how})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def place_fields(place: Place) -> dict[str, Any]:
    """The fields of a place, as another process takes them."""
    return dataclasses.asdict(place)
