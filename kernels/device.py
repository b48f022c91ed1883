"""What a rank computes on: where its weights and cache lie, and what runs its forward pass."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch

from .checks import CPU
from .gpu.weight import GpuWeight
from .program import AnyProgram, Program
from .step import StepLimits
from .weight import PackedWeight

AnyWeight = PackedWeight | GpuWeight
Weight = TypeVar("Weight", bound=AnyWeight)
Made_co = TypeVar("Made_co", bound=AnyWeight, covariant=True)


class Device(Protocol[Made_co]):
    """`device`: where tensors lie. `spare_pages`: pages of a KV cache that no sequence may have."""

    @property
    def device(self) -> torch.device: ...

    @property
    def spare_pages(self) -> int: ...

    def weight(self, packed: PackedWeight) -> Made_co:
        """A weight in the form of the device; raises InputError for one that it cannot take."""
        ...

    def program(self, limits: StepLimits) -> AnyProgram:
        """A program without ops."""
        ...


class Cpu:
    """The CPUs of this machine, as loaded weights are."""

    device, spare_pages = CPU, 0

    def weight(self, packed: PackedWeight) -> PackedWeight:
        """See Device."""
        return packed

    def program(self, limits: StepLimits) -> Program:
        """See Device."""
        return Program(limits)


HOST = Cpu()
