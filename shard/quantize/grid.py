"""The integer grid of a group of weights: scale, zero point, codes, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isobit.errors import DamagedError, InputError

from ..formats.codes import WholeWeight
from ..formats.scheme import CHANNEL

BITS = (4, 8)
USUAL_GROUP_SIZES = (1024, 512, 256, 128, 64, 32, 16, 8)
# How far and how finely a range is shrunk when the scale is searched for, as GPTQ's authors do.
SHRINK_STEPS, SHRINK_GRID = 80, 100


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight(WholeWeight):
    """A WholeWeight that an algorithm made: `pack` of a format takes it as it is."""

    def dequantize(self, bits: int) -> torch.Tensor:
        """Return float32 [N, K]: scale * (code - zero); without zeros 2^(bits-1) is subtracted."""
        n, k = self.codes.shape
        zeros = 1 << (bits - 1) if self.zeros is None else self.zeros.float()
        scales = self.scales.float()
        if self.g_idx is not None:
            groups = self.g_idx.long()
            shift = zeros if isinstance(zeros, int) else zeros[:, groups]
            return (self.codes.float() - shift) * scales[:, groups]
        shift = zeros if isinstance(zeros, int) else zeros[:, :, None]
        values = self.codes.float().view(n, scales.shape[1], -1) - shift
        return (values * scales[:, :, None]).view(n, k)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How a group of weights becomes codes.

    Symmetric: zero point 2^(bits-1), scale absmax / ((2^bits - 1) / 2), so the whole range of codes
    is used and the largest magnitude is off by half a step at most. Asymmetric: the range from the
    smallest to the largest value, 0 included. `mse` > 0 searches for the shrunken range with the
    least sum of |error|^mse (2.4 is usual); 0 keeps the whole range. `scale_dtype` is what scales
    are stored in: they are rounded to it before codes are chosen, so that codes are nearest for
    the scale that a reader finds.
    """

    bits: int
    symmetric: bool
    scale_dtype: torch.dtype
    mse: float = 0.0

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def fit(self, values: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point, both float32, of each group of values along `dim`.

        A group of zeros has scale 1. Paper of the search: Frantar et al., arXiv 2210.17323, code.
        """
        low, high = values.aminmax(dim=dim)
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        scales, zeros = self._scales(low, high)
        if not self.mse:
            return scales, zeros
        best = self._error(values, scales, zeros, dim)
        for step in range(1, SHRINK_STEPS):
            share = 1 - step / SHRINK_GRID
            tried, tried_zeros = self._scales(low * share, high * share)
            error = self._error(values, tried, tried_zeros, dim)
            better = error < best
            best = torch.where(better, error, best)
            scales = torch.where(better, tried, scales)
            zeros = torch.where(better, tried_zeros, zeros)
        return scales, zeros

    def codes(
        self, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
    ) -> torch.Tensor:
        """The nearest codes, float32, for scales and zeros that broadcast against the values."""
        return (values / scales).round_().add_(zeros).clamp_(0, self.top)

    def rounded(self, values: torch.Tensor, dim: int) -> torch.Tensor:
        """Values after one trip through codes, each group along `dim` with its own grid."""
        scales, zeros = (each.unsqueeze(dim) for each in self.fit(values, dim))
        return self.codes(values, scales, zeros).sub_(zeros).mul_(scales)

    def _scales(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        span = 2 * torch.maximum(-low, high) if self.symmetric else high - low
        limits = torch.finfo(self.scale_dtype)
        # The whole span is divided, so that halving it first rounds nothing more.
        scales = (span / self.top).clamp(max=limits.max).to(self.scale_dtype)
        scales = scales.clamp(min=limits.smallest_normal * limits.eps).float()
        scales = torch.where(span == 0, torch.ones_like(scales), scales)
        if self.symmetric:
            return scales, torch.full_like(scales, 1 << (self.bits - 1))
        return scales, (-low / scales).round_().clamp_(0, self.top)

    def _error(
        self, values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, dim: int
    ) -> torch.Tensor:
        scales, zeros = scales.unsqueeze(dim), zeros.unsqueeze(dim)
        back = self.codes(values, scales, zeros).sub_(zeros).mul_(scales)
        return back.sub_(values).abs_().pow_(self.mse).sum(dim)


def check_bits(bits: int) -> None:
    """Raise InputError E-QUANT-SCHEME for a width that no format stores."""
    if bits not in BITS:
        raise InputError("E-QUANT-SCHEME", f"bits {bits}: expected 4 or 8")


def group_width(k: int, group_size: int) -> int:
    """Input features that share a scale, K for group_size -1.

    Raises InputError E-QUANT-GROUP, naming usual sizes that divide K, for one that does not.
    """
    if group_size == CHANNEL:
        return k
    if group_size > 0 and k % group_size == 0:
        return group_size
    fits = [str(size) for size in USUAL_GROUP_SIZES if k % size == 0] + [str(CHANNEL)]
    groups = f" ({k / group_size:.2f} groups)" if group_size > 0 else ""
    raise InputError(
        "E-QUANT-GROUP",
        f"group_size {group_size} does not divide {k} input features{groups}. "
        f"Group sizes that do: {', '.join(fits)} (-1: one scale per output)",
    )


def check_finite(weight: torch.Tensor) -> None:
    """Raise InputError E-QUANT-NAN for a weight [N, K] that holds NaN or infinity."""
    if not bool(weight.sum().isfinite()) and (bad := int((~weight.isfinite()).sum())):
        raise DamagedError(
            "E-QUANT-NAN",
            f"{bad} of {weight.numel()} elements of the weight are NaN or infinite. `isobit "
            "inspect` names the tensors; fetch the checkpoint again",
        )
