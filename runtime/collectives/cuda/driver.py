"""What the collectives ask of CUDA itself: memory that other processes see. Nothing else calls it.

Not run on hardware. Tests put a driver without CUDA in its place.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Protocol

import torch

from isobit.errors import EnvironmentFault

from .child import Child, start_child

LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64
IPC_BLOCK = 2 << 20
"""What is smaller may lie in one block with other memory, which would be exported with it."""
LAZY_PEER_ACCESS = 1
KERNEL_EXEC_TIMEOUT = 17
"""CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT"""
HOST_PORTABLE, HOST_DEVICE_MAPPED = 1, 2


class Driver(Protocol):
    """Addresses are integers as kernels on this rank's device use them. Calls raise
    EnvironmentFault E-COLL-CUDA with what CUDA says."""

    def identity(self) -> str:
        """The device, so that two ranks know whether they share one."""
        ...

    def reaches(self, index: int) -> bool | None:
        """Whether this device reads the memory of another one; None if that is not known here."""
        ...

    def ends_long_kernels(self) -> bool:
        """Whether CUDA ends kernels of this device after some seconds: it drives a display."""
        ...

    def start_probe(self, rank: int, degree: int) -> Child:
        """A process on this device that tries the memory of peers, as probe.serve does."""
        ...

    def allocate(self, nbytes: int) -> int:
        """Device memory full of zeros, for the life of this process."""
        ...

    def share(self, address: int) -> bytes:
        """What another process opens such memory with."""
        ...

    def open(self, shared: bytes) -> int:
        """Map the memory of another process."""
        ...

    def close(self, address: int) -> None:
        """Undo `open`."""
        ...

    def register(self, address: int, nbytes: int) -> int:
        """Pin memory of the host and map it for the device."""
        ...

    def unregister(self, address: int) -> None:
        """Undo `register`, by the address on the host."""
        ...

    def wait(self) -> None:
        """Wait until the device has done everything."""
        ...

    def report(self) -> torch.Tensor:
        """A word int64 `[1]`, 0, that kernels write and the host reads."""
        ...


@functools.cache
def _library() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise EnvironmentFault("E-COLL-CUDA", f"{LIBRARY} cannot be loaded: {error}") from error


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(status, ctypes.byref(text))
        said = (text.value or b"an unknown error").decode()
        raise EnvironmentFault("E-COLL-CUDA", f"{name}: {said} ({status})")


class CudaDriver:
    """The CUDA driver interface of one device, which is the current one of this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Makes torch's context of the device the current one, in which all calls are.
        self.wait()

    def identity(self) -> str:
        """See Driver."""
        return str(torch.cuda.get_device_properties(self.device).uuid)

    def reaches(self, index: int) -> bool | None:
        """See Driver."""
        if index == self.device.index:
            return True
        if index >= torch.cuda.device_count():
            return None
        return torch.cuda.can_device_access_peer(self.device, index)

    def ends_long_kernels(self) -> bool:
        """See Driver."""
        found = ctypes.c_int()
        index = ctypes.c_int(self.device.index or 0)
        _call("cuDeviceGetAttribute", ctypes.byref(found), KERNEL_EXEC_TIMEOUT, index)
        return bool(found.value)

    def start_probe(self, rank: int, degree: int) -> Child:
        """See Driver."""
        return start_child(self.device.index or 0, rank, degree)

    def allocate(self, nbytes: int) -> int:
        """See Driver. Not torch's memory: an exported piece of its pool would export its
        neighbours."""
        address, size = ctypes.c_uint64(), ctypes.c_size_t(-(-nbytes // IPC_BLOCK) * IPC_BLOCK)
        _call("cuMemAlloc_v2", ctypes.byref(address), size)
        _call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), size)
        self.wait()
        return address.value

    def share(self, address: int) -> bytes:
        """See Driver: an IPC handle."""
        handle = ctypes.create_string_buffer(HANDLE_BYTES)
        _call("cuIpcGetMemHandle", handle, ctypes.c_uint64(address))
        return handle.raw

    def open(self, shared: bytes) -> int:
        """See Driver."""
        address = ctypes.c_uint64()
        _call(
            "cuIpcOpenMemHandle_v2",
            ctypes.byref(address),
            _Handle.from_buffer_copy(shared),
            ctypes.c_uint(LAZY_PEER_ACCESS),
        )
        return address.value

    def close(self, address: int) -> None:
        """See Driver."""
        _call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def register(self, address: int, nbytes: int) -> int:
        """See Driver."""
        flags = ctypes.c_uint(HOST_PORTABLE | HOST_DEVICE_MAPPED)
        _call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), flags)
        there = ctypes.c_uint64()
        _call(
            "cuMemHostGetDevicePointer_v2",
            ctypes.byref(there),
            ctypes.c_void_p(address),
            ctypes.c_uint(0),
        )
        return there.value

    def unregister(self, address: int) -> None:
        """See Driver."""
        _call("cuMemHostUnregister", ctypes.c_void_p(address))

    def wait(self) -> None:
        """See Driver."""
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise EnvironmentFault("E-COLL-CUDA", f"{self.device}: {said}") from error

    def report(self) -> torch.Tensor:
        """See Driver: pinned memory has one address on the host and on the device."""
        return torch.zeros(1, dtype=torch.int64, pin_memory=True)


class _Handle(ctypes.Structure):
    """An IPC handle goes to the driver by value."""

    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)
