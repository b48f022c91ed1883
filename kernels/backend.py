"""Which code runs the ops on this machine, chosen once and said aloud."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

import torch

from .errors import EnvironmentFault
from .weight import TILE

log = logging.getLogger(__name__)

ENVIRONMENT = "ISOBIT_CPU_ISA"
REASONS = {
    "avx512_bf16": "bf16 dot products for int4, int8 and bf16 weights under bf16 activations",
    "avx512_vnni": "AVX-512 without BF16: every float product runs in fp32",
    "avx512": "AVX-512 without BF16 and VNNI: every float product runs in fp32",
    "avx2": "AVX2 and FMA: every float product runs in fp32",
    "baseline": "no AVX2: every float product runs in fp32 without fused multiply-add",
}


@functools.cache
def native() -> ModuleType:
    """The compiled module, with its instruction set chosen and logged.

    Raises EnvironmentFault E-KERNEL-MISSING, also for a module built from other sources, or
    E-KERNEL-ISA when ISOBIT_CPU_ISA names an instruction set that this machine lacks.
    """
    try:
        from . import _cpu
    except ImportError as error:
        raise EnvironmentFault(
            "E-KERNEL-MISSING",
            f"the compiled CPU kernels cannot be imported ({error}). "
            "Install the package (`pip install .`) with a C++17 compiler at hand.",
        ) from error
    if (found := getattr(_cpu, "tile", None)) != TILE:
        raise EnvironmentFault(
            "E-KERNEL-MISSING",
            f"the compiled CPU kernels were built from other sources: tiles of {found} columns, "
            f"not {TILE}. Build them again (`pip install .`).",
        )
    forced = os.environ.get(ENVIRONMENT)
    if forced:
        _select(_cpu, forced)
    log.info("kernels: cpu, %s: %s; vnni: %s", _cpu.isa(), _reason(_cpu), _vnni(_cpu))
    return _cpu


@functools.cache
def cuda() -> ModuleType:
    """The ops for CUDA tensors. Raises EnvironmentFault E-KERNEL-MISSING without triton."""
    try:
        from .gpu import ops
    except ImportError as error:
        raise EnvironmentFault(
            "E-KERNEL-MISSING",
            f"the CUDA kernels cannot be imported ({error}). They need triton, which comes with "
            "torch for CUDA: `pip install triton`.",
        ) from error
    return ops


def backend(device: torch.device | str = "cpu") -> dict[str, str]:
    """Device, instruction set and the reason for it; vnni: whether int8 sums use it ("yes", "no").

    Of a CUDA device: its architecture as isa, the card, and the version of triton. Raises as
    `native` and `cuda` do, and EnvironmentFault E-KERNEL-ARCH for a card without kernels.
    """
    if torch.device(device).type == "cuda":
        return cuda().describe(torch.device(device))
    module = native()
    return {
        "device": "cpu",
        "isa": module.isa(),
        "vnni": _vnni(module),
        "reason": _reason(module),
    }


def available_isas() -> list[str]:
    """The instruction sets of this machine, widest first."""
    return native().available_isas()


def set_isa(name: str) -> None:
    """Runs every op of this process on one instruction set; float bits differ between sets.

    Raises EnvironmentFault E-KERNEL-ISA when the machine lacks it.
    """
    _select(native(), name)


def set_threads(count: int) -> None:
    """How many threads an op may use, the caller's included. It never changes a bit."""
    if count < 1:
        raise EnvironmentFault("E-KERNEL-THREADS", f"{count} threads; at least 1 is needed")
    native().set_threads(count)


def threads() -> int:
    """How many threads an op may use."""
    return native().threads()


def busy_seconds() -> float:
    """Time that this process has spent inside kernels so far."""
    return native().busy_ns() / 1e9


def external_seconds() -> float:
    """Time that this process has spent in collectives called from a program so far."""
    return native().external_ns() / 1e9


def _select(module: ModuleType, name: str) -> None:
    if not module.set_isa(name):
        have = ", ".join(module.available_isas())
        raise EnvironmentFault("E-KERNEL-ISA", f"this machine cannot run {name}; it can run {have}")


def _vnni(module: ModuleType) -> str:
    return "yes" if module.uses_vnni() else "no"


def _reason(module: ModuleType) -> str:
    isa = module.isa()
    chosen = isa != module.available_isas()[0]
    return REASONS[isa] + (" (chosen by hand)" if chosen else "")
