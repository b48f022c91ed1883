"""Every rank's region of memory, mapped into every rank: device memory, or pinned host memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isobit.errors import EnvironmentFault

from .driver import Driver

Transport = Literal["peer memory", "host memory"]
Exchange = Callable[[str], list[str]]
"""Gives every rank's text, in the order of ranks."""
SHARED_FOLDER = Path("/dev/shm")  # noqa: S108


@dataclass(frozen=True)
class Regions:
    """Where this rank's device finds each rank's region; `close` unmaps those of the others."""

    addresses: list[int]
    close: Callable[[], None]


def map_regions(
    transport: Transport, driver: Driver, nbytes: int, rank: int, exchange: Exchange
) -> Regions:
    """A region of `nbytes` zeros of each rank, on all ranks together.

    Raises EnvironmentFault E-COLL-CUDA or E-COLL-SHM on every rank alike, with what each found.
    """
    maker = _of_devices if transport == "peer memory" else _of_host
    return maker(driver, nbytes, rank, exchange)


def _of_devices(driver: Driver, nbytes: int, rank: int, exchange: Exchange) -> Regions:
    """Own memory is left to the end of the process: another rank may be reading it."""
    own, handle, wrong = 0, "", ""
    try:
        own = driver.allocate(nbytes)
        handle = driver.share(own).hex()
    except EnvironmentFault as fault:
        wrong = f"rank {rank}: {fault.message}"
    answers = [answer.partition("\n") for answer in exchange(f"{handle}\n{wrong}")]
    _raise_together("E-COLL-CUDA", [text for _, _, text in answers])
    addresses, opened = [], []

    def close() -> None:
        driver.wait()
        for address in opened:
            driver.close(address)
        opened.clear()

    try:
        for peer, (theirs, _, _) in enumerate(answers):
            if peer == rank:
                addresses.append(own)
                continue
            opened.append(driver.open(bytes.fromhex(theirs)))
            addresses.append(opened[-1])
    except EnvironmentFault as fault:
        wrong = f"rank {rank}: memory of rank {len(addresses)}: {fault.message}"
    faults = exchange(wrong)
    if any(faults):
        close()
    _raise_together("E-COLL-CUDA", faults)
    return Regions(addresses, close)


def _of_host(driver: Driver, nbytes: int, rank: int, exchange: Exchange) -> Regions:
    """One file in shared memory for all, without a name as soon as everybody has it."""
    stride = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    path, wrong = SHARED_FOLDER / f"isobit-{secrets.token_hex(8)}", ""
    degree = len(exchange(""))
    if rank == 0:
        wrong = _create(path, degree * stride)
    try:
        name, _, wrong = exchange(f"{path}\n{wrong}")[0].partition("\n")
        _raise_together("E-COLL-SHM", [wrong])
        mapped = None
        try:
            mapped = _Mapped(Path(name), degree * stride, driver)
        except (OSError, EnvironmentFault) as error:
            wrong = f"rank {rank}: {getattr(error, 'message', error)}"
        faults = exchange(wrong)
    finally:
        if rank == 0:
            path.unlink(missing_ok=True)
    if mapped is None or any(faults):
        if mapped is not None:
            mapped.close()
        _raise_together("E-COLL-SHM", faults)
    assert mapped is not None
    return Regions([mapped.address + peer * stride for peer in range(degree)], mapped.close)


def _create(path: Path, nbytes: int) -> str:
    """Make a file of zeros whose memory is there; returns what kept it from being made."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, nbytes)
        finally:
            os.close(file)
    except OSError as error:
        return (
            f"shared memory ({SHARED_FOLDER}) has no {nbytes / 2**20:.1f} MiB "
            f"({os.strerror(error.errno or 0)}). Make it larger (docker run --shm-size=1g, or "
            "--ipc=host), or run with --disable-custom-all-reduce"
        )
    return ""


class _Mapped:
    """A file mapped and pinned; `address` is where the device finds it."""

    def __init__(self, path: Path, nbytes: int, driver: Driver) -> None:
        file = os.open(path, os.O_RDWR)
        try:
            self._memory = mmap.mmap(file, nbytes)
        finally:
            os.close(file)
        self._view = ctypes.c_char.from_buffer(self._memory)
        self._driver, self._closed = driver, False
        self.address = driver.register(ctypes.addressof(self._view), nbytes)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._driver.wait()
        self._driver.unregister(ctypes.addressof(self._view))
        del self._view
        self._memory.close()


def _raise_together(code: str, texts: list[str]) -> None:
    if faults := [text for text in texts if text]:
        raise EnvironmentFault(code, "\n".join(faults))
