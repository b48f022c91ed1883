"""The calls into the CUDA driver, with a library that writes down how it is called."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from isobit.errors import EnvironmentFault
from isobit.runtime.collectives.cuda import driver as module
from isobit.runtime.collectives.cuda.driver import HANDLE_BYTES, IPC_BLOCK, CudaDriver
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.collectives.measure import even_plan
from isobit.runtime.collectives.self_test import self_test
from isobit.runtime.collectives.shared import SharedSettings

ADDRESS = 0x7F0012340000


class Library:
    """Fills in what a call returns, as C would; `failing` gives status 700."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.calls = failing, []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"an illegal memory access was encountered"
                return 0
            if name == self.failing:
                return 700
            if name in ("cuMemAlloc_v2", "cuIpcOpenMemHandle_v2", "cuMemHostGetDevicePointer_v2"):
                arguments[0]._obj.value = ADDRESS
            if name == "cuIpcGetMemHandle":
                ctypes.memmove(arguments[0], bytes(range(HANDLE_BYTES)), HANDLE_BYTES)
            return 0

        return call


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(module, "_library", lambda: made)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return made


def test_memory_is_whole_blocks_of_zeros_and_its_handle_goes_by_value(library: Library) -> None:
    driver = CudaDriver(torch.device("cuda", 0))
    assert driver.allocate(IPC_BLOCK + 1) == ADDRESS
    sizes = [arguments[-1].value for _, arguments in library.calls]
    assert sizes == [2 * IPC_BLOCK] * 2
    handle = driver.share(ADDRESS)
    assert handle == bytes(range(HANDLE_BYTES))
    assert driver.open(handle) == ADDRESS
    name, (_, given, flags) = library.calls[-1]
    assert name == "cuIpcOpenMemHandle_v2" and flags.value == 1
    assert isinstance(given, ctypes.Structure) and bytes(given) == handle


def test_host_memory_is_pinned_for_every_context_and_mapped(library: Library) -> None:
    driver = CudaDriver(torch.device("cuda", 0))
    assert driver.register(4096, 100) == ADDRESS
    (register, (address, size, flags)), (pointer, _) = library.calls
    assert register == "cuMemHostRegister_v2" and pointer == "cuMemHostGetDevicePointer_v2"
    assert (address.value, size.value, flags.value) == (4096, 100, 3)


def test_a_failing_call_says_its_name_and_what_cuda_says(library: Library) -> None:
    library.failing = "cuMemHostRegister_v2"
    driver = CudaDriver(torch.device("cuda", 0))
    with pytest.raises(EnvironmentFault) as caught:
        driver.register(4096, 100)
    assert str(caught.value) == (
        "E-COLL-CUDA cuMemHostRegister_v2: an illegal memory access was encountered (700)"
    )


def test_a_card_that_drives_a_display_ends_long_kernels(library: Library) -> None:
    driver = CudaDriver(torch.device("cuda", 1))
    assert not driver.ends_long_kernels()
    name, (_, attribute, index) = library.calls[-1]
    # CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT of cuda.h
    assert (name, attribute, index.value) == ("cuDeviceGetAttribute", 17, 1)


@pytest.mark.usefixtures("library")
def test_what_a_kernel_did_wrong_has_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = CudaDriver(torch.device("cuda", 0))

    def fail(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(EnvironmentFault) as caught:
        driver.wait()
    assert str(caught.value) == (
        "E-COLL-CUDA cuda:0: CUDA error: an illegal memory access was encountered"
    )


def test_a_self_test_that_ends_a_context_is_one_that_fails() -> None:
    """Nothing else is raised: all ranks hear of it and go on to the next way together."""

    class Faulting(GatherCollectives):
        def all_reduce(self, *_: object) -> None:
            raise RuntimeError("CUDA error: unspecified launch failure\nCompile with")

    plan = even_plan(1)
    (said,) = self_test(Faulting(plan, 0), plan, 0, SharedSettings())
    assert said == "rank 0: E-COLL-CUDA CUDA error: unspecified launch failure"


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("index", "answer"), [(0, True), (1, False), (2, None)])
def test_cards_that_this_process_does_not_see_may_be_in_reach(
    index: int, answer: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda *_: False)
    assert CudaDriver(torch.device("cuda", 0)).reaches(index) is answer


@pytest.mark.skipif(torch.cuda.is_available(), reason="the library is there")
def test_without_the_driver_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    with pytest.raises(EnvironmentFault, match=r"E-COLL-CUDA libcuda\.so\.1 cannot be loaded"):
        CudaDriver(torch.device("cuda", 0)).share(ADDRESS)
