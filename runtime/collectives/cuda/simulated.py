"""A driver without CUDA: the memory of a "device" is a file that every process can map."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import torch

from ....kernels.errors import EnvironmentFault

HANDLE_BYTES = 64


class FileDriver:
    """`trouble`: "apart" (no device reads another), "blind" (CUDA says yes, but what others write
    does not arrive), "refused" (no memory can be opened or pinned)."""

    def __init__(self, folder: Path, rank: int, trouble: str = "", shared_device: bool = False):
        self._folder, self._rank, self._trouble = folder, rank, trouble
        self._device = 0 if shared_device else rank
        self._maps: dict[int, tuple[mmap.mmap, object]] = {}
        self.closed: list[int] = []

    def identity(self) -> str:
        return f"GPU-{self._device}"

    def reaches(self, index: int) -> bool | None:
        return self._trouble != "apart" or index == self._device

    def allocate(self, nbytes: int) -> int:
        path = self._folder / f"device-{self._rank}"
        path.write_bytes(bytes(nbytes))
        return self._map(path)

    def share(self, address: int) -> bytes:
        assert address in self._maps
        return str(self._rank).encode().ljust(HANDLE_BYTES, b"\0")

    def open(self, shared: bytes) -> int:
        if self._trouble == "refused":
            raise EnvironmentFault("E-COLL-CUDA", "cuIpcOpenMemHandle_v2: not today (999)")
        path = self._folder / f"device-{int(shared.rstrip(bytes(1)))}"
        if self._trouble == "blind":
            copy = self._folder / f"{path.name}-as-seen-by-{self._rank}"
            copy.write_bytes(path.read_bytes())
            path = copy
        return self._map(path)

    def close(self, address: int) -> None:
        self.closed.append(address)

    def register(self, address: int, nbytes: int) -> int:
        if self._trouble == "refused":
            raise EnvironmentFault("E-COLL-CUDA", f"cuMemHostRegister_v2: {nbytes} bytes (1)")
        return address

    def unregister(self, address: int) -> None:
        self.closed.append(address)

    def wait(self) -> None:
        pass

    def report(self) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.int64)

    def _map(self, path: Path) -> int:
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        view = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(view)
        self._maps[address] = (memory, view)
        return address
