"""The architectures that the kernels are compiled and tuned for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isobit.errors import EnvironmentFault


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`capability` as 86 for sm_86. `shared_bytes` one block may use at most; `processors` are the
    multiprocessors of its largest card here."""

    capability: int
    shared_bytes: int
    processors: int
    cards: str

    @property
    def name(self) -> str:
        return f"sm_{self.capability}"


ARCHITECTURES = {
    one.capability: one
    for one in (
        Architecture(capability=80, shared_bytes=166912, processors=108, cards="A100, A30"),
        Architecture(capability=86, shared_bytes=101376, processors=84, cards="RTX 3090, A10, A40"),
        Architecture(capability=89, shared_bytes=101376, processors=142, cards="RTX 4090, L4, L40"),
        Architecture(capability=90, shared_bytes=232448, processors=132, cards="H100, H200"),
    )
}


def architecture_of(device: torch.device) -> Architecture:
    """The architecture of a CUDA device; that of sm_80 for a CPU, where the interpreter runs, and
    for memory that is nowhere (meta).

    Raises EnvironmentFault E-KERNEL-ARCH for a card without a table of configurations.
    """
    if device.type in ("cpu", "meta"):
        return ARCHITECTURES[80]
    major, minor = torch.cuda.get_device_capability(device)
    found = ARCHITECTURES.get(10 * major + minor)
    if found is None:
        known = ", ".join(one.name for one in ARCHITECTURES.values())
        raise EnvironmentFault(
            "E-KERNEL-ARCH",
            f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}; "
            f"there are kernels for {known}",
        )
    return found
