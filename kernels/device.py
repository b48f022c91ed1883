"""What a rank computes on: where its weights and cache lie, and what runs its forward pass."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch

from .checks import CPU
from .gpu.card import Card
from .gpu.weight import GpuWeight
from .program.program import AnyProgram, Program
from .step.step import StepLimits
from .weights.weight import PackedWeight

AnyWeight = PackedWeight | GpuWeight
Weight = TypeVar("Weight", bound=AnyWeight)
Made_co = TypeVar("Made_co", bound=AnyWeight, covariant=True)


class Device(Protocol[Made_co]):
    """`device`: where tensors lie. `spare_pages`: pages of a KV cache that no sequence may have.
    `card`: whose memory limits the KV cache, where there is one."""

    @property
    def device(self) -> torch.device: ...

    @property
    def spare_pages(self) -> int: ...

    @property
    def card(self) -> Card | None: ...

    def weight(self, packed: PackedWeight) -> Made_co:
        """A weight in the form of the device; raises InputError for one that it cannot take."""
        ...

    def program(self, limits: StepLimits) -> AnyProgram:
        """A program without ops."""
        ...


class Cpu:
    """The CPUs of this machine, as loaded weights are."""

    device, spare_pages, card = CPU, 0, None

    def weight(self, packed: PackedWeight) -> PackedWeight:
        """See Device."""
        return packed

    def program(self, limits: StepLimits) -> Program:
        """See Device."""
        return Program(limits)


HOST = Cpu()
