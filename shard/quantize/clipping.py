"""AWQ's clipping: the largest magnitude of each group that is worth a code.

Lin et al., arXiv 2306.00978, section 4.1 and its code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isobit.errors import InputError

from .grid import Grid, check_bits, check_finite, group_width
from .quality import check_hessian

ROWS = 512


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """Magnitudes are shrunk in steps of 1 / `n_grid`, by less than `max_shrink` in all.

    The rest describes the rounding that follows; `scale_dtype` None: the weight's. Raises
    InputError E-QUANT-SCHEME, E-QUANT-SETTING.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    n_grid: int = 20
    max_shrink: float = 0.5
    scale_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.n_grid < 1 or not 0 <= self.max_shrink < 1:
            raise InputError(
                "E-QUANT-SETTING",
                f"clipping: n_grid {self.n_grid}, max_shrink {self.max_shrink}: expected 1 or more "
                "steps, and a share from 0 to below 1 (20 and 0.5 are usual)",
            )


def search_bounds(
    weight: torch.Tensor, hessian: torch.Tensor, settings: ClipSettings
) -> torch.Tensor:
    """Find the bound of |w| of each group with the least output error of that group alone.

    `weight` [N, K], already scaled; `hessian` [K, K] of its inputs, of which only blocks on the
    diagonal are used: a group's error e costs e H_gg e^T. Returns float32 [N, G]; a bound is the
    largest magnitude where clipping does not help. AutoAWQ leaves q and k alone, since errors of
    attention scores do not add up like this. Raises InputError E-QUANT-GROUP, E-QUANT-NAN,
    E-QUANT-HESSIAN.
    """
    n, k = weight.shape
    width = group_width(k, settings.group_size)
    check_finite(weight)
    check_hessian(hessian, k)
    grid = Grid(
        bits=settings.bits,
        symmetric=settings.symmetric,
        scale_dtype=settings.scale_dtype or weight.dtype,
    )
    spans = range(0, k, width)
    blocks = torch.stack([hessian[at : at + width, at : at + width].float() for at in spans])
    strips = [_bounds(rows, blocks, grid, settings) for rows in weight.split(ROWS)]
    return torch.cat(strips) if strips else torch.empty(n, k // width)


def clip(weight: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Clamp each group of a weight [N, K] to its bounds [N, G]; same dtype."""
    n, k = weight.shape
    limits = bounds.to(weight.dtype)[:, :, None]
    groups = weight.reshape(n, bounds.shape[1], -1)
    return groups.clamp(min=-limits, max=limits).view(n, k)


def _bounds(
    rows: torch.Tensor, blocks: torch.Tensor, grid: Grid, settings: ClipSettings
) -> torch.Tensor:
    count, width = blocks.shape[:2]
    # [G, N, width]: one matrix product a group.
    groups = rows.float().view(len(rows), count, width).transpose(0, 1).contiguous()
    highest = groups.abs().amax(dim=2)
    best, least = highest, torch.full_like(highest, float("inf"))
    for step in range(max(int(settings.max_shrink * settings.n_grid), 1)):
        bound = highest * (1 - step / settings.n_grid)
        limits = bound[:, :, None]
        error = grid.rounded(groups.clamp(min=-limits, max=limits), dim=2).sub_(groups)
        cost = torch.bmm(error, blocks).mul_(error).sum(dim=2)
        better = cost < least
        least = torch.where(better, cost, least)
        best = torch.where(better, bound, best)
    return best.T
