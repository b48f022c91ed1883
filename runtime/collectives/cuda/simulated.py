"""A driver without CUDA: the memory of a "device" is a file that every process can map."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from pathlib import Path

import torch

from isobit.errors import EnvironmentFault

from .child import Child
from .probe import serve

HANDLE_BYTES = 64


class FileDriver:
    """`trouble`: "apart" (no device reads another), "blind" (CUDA says yes, but what others write
    does not arrive), "refused" (no memory can be opened or pinned), "faults" (who opens memory of a
    peer gets an error of CUDA), "kills" (who opens it is ended), "hangs". With " later" behind it
    a probe finds nothing."""

    def __init__(self, folder: Path, rank: int, trouble: str = "", shared_device: bool = False):
        self._folder, self._rank = folder, rank
        self._trouble, _, self._later = trouble.partition(" later")
        self._later = "later" in trouble
        self._device = 0 if shared_device else rank
        self._maps: dict[int, tuple[mmap.mmap, object]] = {}
        self.closed: list[int] = []

    def identity(self) -> str:
        return f"GPU-{self._device}"

    def reaches(self, index: int) -> bool | None:
        return self._trouble != "apart" or index == self._device

    def ends_long_kernels(self) -> bool:
        return self._trouble == "display"

    def start_probe(self, rank: int, degree: int) -> Child:
        theirs_in, questions = os.pipe()
        answers, theirs_out = os.pipe()
        child = os.fork()
        if child:
            os.close(theirs_in), os.close(theirs_out)
            return Child(child, answers, questions)
        try:
            os.close(questions), os.close(answers)
            folder = self._folder / "probe"
            folder.mkdir(exist_ok=True)
            driver = FileDriver(folder, rank, "" if self._later else self._trouble)
            with os.fdopen(theirs_in) as asked, os.fdopen(theirs_out, "w") as said:
                serve(driver, torch.device("cpu"), rank, degree, asked, said)
        finally:
            os._exit(0)

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
        if self._trouble == "faults":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with")
        if self._trouble == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._trouble == "hangs":
            time.sleep(60)
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
