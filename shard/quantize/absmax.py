"""Round to nearest with a scale from the largest magnitude: no calibration, no data."""

from __future__ import annotations

import torch

from .grid import Grid, QuantizedWeight, check_bits, group_width

__all__ = ["QuantizedWeight", "quantize_absmax"]


def quantize_absmax(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = True,
    mse: float = 0.0,
    scale_dtype: torch.dtype | None = None,
) -> QuantizedWeight:
    """Quantize a weight [N, K] in groups of `group_size` input features; -1: one per output.

    Symmetric: the scale of a group is absmax / ((2^bits - 1) / 2), the zero point 2^(bits-1).
    Asymmetric: (max - min) / (2^bits - 1) with 0 inside the range, and `zeros` uint8 [N, G]. `mse`
    is Grid's. Scales are in the weight's dtype unless `scale_dtype` is given. A group of zeros
    gets scale 1. Raises InputError E-QUANT-SCHEME, E-QUANT-GROUP.
    """
    check_bits(bits)
    n, k = weight.shape
    width = group_width(k, group_size)
    dtype = scale_dtype or weight.dtype
    grid = Grid(bits=bits, symmetric=symmetric, mse=mse, scale_dtype=dtype)
    groups = weight.float().reshape(n, k // width, width)
    scales, zeros = grid.fit(groups, dim=2)
    codes = grid.codes(groups, scales[:, :, None], zeros[:, :, None])
    return QuantizedWeight(
        codes=codes.to(torch.uint8).view(n, k),
        scales=scales.to(dtype),
        zeros=None if symmetric else zeros.to(torch.uint8),
    )
