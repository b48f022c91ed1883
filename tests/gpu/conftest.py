"""The CUDA kernels on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    from isobit.kernels.gpu.simulated.interpreter import install

    install(check_overflow=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20)


@pytest.fixture
def device() -> Iterator[str]:
    """Where tensors of kernels live; uninitialized memory is NaN, so an unwritten output shows."""
    torch.use_deterministic_algorithms(True)
    yield "cpu" if INTERPRETED else "cuda"
    torch.use_deterministic_algorithms(False)
