"""Memory is poisoned: `torch.empty` hands out NaN in every test, so an unwritten output shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from isobit.kernels import ops
from isobit.kernels.weights import layout

# Small tensors on a busy machine: torch's own threads would wait for each other, not compute.
torch.set_num_threads(1)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    ops.set_threads(1)
    torch.manual_seed(20)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=ops.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    ops.set_isa(request.param)
    yield request.param
    ops.set_isa(ops.available_isas()[0])


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture
def quantized() -> Callable[..., layout.PackedWeight]:
    """A random packed weight from runs and segments; `zeros` asks for random zero points."""

    def make(
        n: int,
        runs: list[tuple[int, int]],
        segments: list[int],
        *,
        bits: int = 4,
        zeros: bool = False,
        scale_dtype: torch.dtype = torch.float32,
        order: torch.Tensor | None = None,
    ) -> layout.PackedWeight:
        k = runs[-1][1] if runs else 0
        top = 2**bits
        return layout.pack_quantized(
            torch.randint(0, top, (n, k), dtype=torch.uint8),
            (torch.rand(n, len(runs)) + 0.5).to(scale_dtype),
            torch.randint(0, top, (n, len(runs)), dtype=torch.uint8) if zeros else None,
            bits=bits,
            runs=runs,
            segments=segments,
            order=order,
        )

    return make
