"""Which code runs the ops on a device."""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from isobit.errors import EnvironmentFault

from .native import native, reason, vnni


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
        "vnni": vnni(module),
        "reason": reason(module),
    }
