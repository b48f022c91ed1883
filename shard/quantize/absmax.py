"""Round to nearest with a scale from the largest magnitude: no calibration, no data."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """`codes` uint8 [N, K] (unsigned, zero point 2^(bits-1)), `scales` [N, G]."""

    codes: torch.Tensor
    scales: torch.Tensor

    def dequantize(self, bits: int) -> torch.Tensor:
        """Return float32 [N, K]."""
        n, k = self.codes.shape
        signed = self.codes.float() - (1 << (bits - 1))
        groups = signed.view(n, self.scales.shape[1], -1)
        return (groups * self.scales.float()[:, :, None]).view(n, k)


def quantize_absmax(weight: torch.Tensor, bits: int, group_size: int) -> QuantizedWeight:
    """Quantize a weight [N, K] symmetrically in groups of `group_size` input features.

    The scale of a group is absmax / ((2^bits - 1) / 2): the whole range of codes is used, and the
    largest magnitude is off by half a step at most. The scale is rounded to the weight's dtype
    first, so that codes are nearest for the scale that is stored. A group of zeros gets scale 1.
    `group_size` divides K.
    """
    n, k = weight.shape
    assert k % group_size == 0
    groups = weight.float().view(n, k // group_size, group_size)
    scales = groups.abs().amax(dim=2) / ((2**bits - 1) / 2)
    limits = torch.finfo(weight.dtype)
    scales = scales.to(weight.dtype).clamp(min=limits.smallest_normal * limits.eps)
    scales = torch.where(groups.abs().amax(dim=2) == 0, torch.ones_like(scales), scales)
    half = 1 << (bits - 1)
    signed = (groups / scales.float()[:, :, None]).round().clamp(-half, half - 1)
    codes = (signed + half).to(torch.uint8).view(n, k)
    return QuantizedWeight(codes=codes, scales=scales)
