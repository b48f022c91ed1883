"""The compiled CPU kernels: found, chosen by instruction set once, and said aloud."""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType

from isobit.errors import EnvironmentFault

log = logging.getLogger(__name__)

ENVIRONMENT = "ISOBIT_CPU_ISA"
TILE = 64
"""Output columns of a tile, for which the compiled module has to be built as well."""
REASONS = {
    "avx512_bf16": "bf16 dot products for int4, int8 and bf16 weights under bf16 activations",
    "avx512_vnni": "AVX-512 without BF16: every float matmul runs in fp32",
    "avx512": "AVX-512 without BF16 and VNNI: every float matmul runs in fp32",
    "avx2": "AVX2 and FMA: every float matmul runs in fp32",
    "baseline": "no AVX2: every float matmul runs in fp32 without fused multiply-add",
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
    log.info("kernels: cpu, %s: %s; vnni: %s", _cpu.isa(), reason(_cpu), vnni(_cpu))
    return _cpu


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


def vnni(module: ModuleType) -> str:
    """Whether int8 sums use VNNI: "yes" or "no"."""
    return "yes" if module.uses_vnni() else "no"


def reason(module: ModuleType) -> str:
    """Why the instruction set in use was chosen."""
    isa = module.isa()
    chosen = isa != module.available_isas()[0]
    return REASONS[isa] + (" (chosen by hand)" if chosen else "")
