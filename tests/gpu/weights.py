"""Random weights, and products of them as the kernels make them."""

from __future__ import annotations

import torch

from isobit.kernels.gpu.launch import run_all
from isobit.kernels.gpu.layout import to_gpu
from isobit.kernels.gpu.linear import product_work, tree_nodes
from isobit.kernels.gpu.table import Block
from isobit.kernels.weights import layout
from isobit.kernels.weights.weight import PackedWeight


def spans(width: int, k: int) -> list[tuple[int, int]]:
    """Runs of one width."""
    return [(begin, min(begin + width, k)) for begin in range(0, k, width)]


def quantized(
    n: int,
    runs: list[tuple[int, int]],
    segments: list[int],
    *,
    bits: int = 4,
    zeros: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    order: torch.Tensor | None = None,
    activation: str = "float",
    input_scale: float | None = None,
) -> PackedWeight:
    """A random packed weight of runs and segments (see layout.pack_quantized)."""
    k = runs[-1][1]
    shape = (n, len(runs))
    return layout.pack_quantized(
        torch.randint(0, 2**bits, (n, k), dtype=torch.uint8),
        (torch.rand(shape) + 0.5).to(scale_dtype),
        torch.randint(0, 2**bits + (bits == 4), shape).to(torch.uint8) if zeros else None,
        bits=bits,
        runs=runs,
        segments=segments,
        order=order,
        activation=activation,
        input_scale=input_scale,
    )


def product(
    x: torch.Tensor,
    weight: PackedWeight,
    device: str,
    merges: list[int] | None = None,
    *,
    bias: torch.Tensor | None = None,
    block: Block | None = None,
) -> torch.Tensor:
    """The product on `device`, back on the CPU: fp32 `[planes, M, N]`."""
    nodes = None if merges is None else tree_nodes(merges)
    planes = weight.segments if nodes is None else len(nodes)
    out = torch.full((planes, len(x), weight.n), torch.nan, device=device)
    bias = None if bias is None else bias.to(device)
    made = to_gpu(weight, device)
    run_all(product_work(x.to(device), made, out, nodes, bias=bias, block=block).launches)
    return out.cpu()
