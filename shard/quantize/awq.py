"""AWQ: input features that matter are scaled up before rounding, and down again before the product.

Lin et al., arXiv 2306.00978. `folding` puts the inverse into what comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from isobit.errors import InputError

from .grid import Grid, check_bits, check_finite, group_width
from .quality import check_hessian, output_energy

ROWS = 1024
LEAST = 1e-4


@dataclass(frozen=True, kw_only=True)
class AwqSettings:
    """`n_grid` steps of the ratio from 0 to 1.

    `duo_scaling` True: s = x_mean^ratio / w_mean^(1-ratio), AutoAWQ's default; False: x_mean^ratio,
    as in the paper; "both" tries both. `symmetric` and the rest describe the rounding that follows.
    `scale_dtype` None: the weight's. Raises InputError E-QUANT-SCHEME, E-QUANT-SETTING.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    duo_scaling: bool | Literal["both"] = True
    n_grid: int = 20
    scale_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if self.n_grid < 1 or self.duo_scaling not in (True, False, "both"):
            raise InputError(
                "E-QUANT-SETTING",
                f"awq: n_grid {self.n_grid}, duo_scaling {self.duo_scaling!r}: expected 1 or more "
                'steps (20 is usual), and True, False or "both"',
            )

    def grid(self, weight: torch.Tensor) -> Grid:
        """How a weight of this dtype is rounded."""
        dtype = self.scale_dtype or weight.dtype
        return Grid(bits=self.bits, symmetric=self.symmetric, scale_dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class AwqScales:
    """`scales` float32 [K] multiply the weights' columns; all 1 when nothing did better.

    `ratio` and `duo` made them, None for no scaling. `error` is the output error relative to the
    output's energy, `error_unscaled` that without scaling.
    """

    scales: torch.Tensor
    ratio: float | None
    duo: bool
    error: float
    error_unscaled: float


def search_scales(
    weights: Sequence[torch.Tensor],
    abs_mean: torch.Tensor,
    settings: AwqSettings,
    *,
    hessian: torch.Tensor | None = None,
    inputs: torch.Tensor | None = None,
) -> AwqScales:
    """Find the scales with the least output error of products that share an input.

    `weights` [N_i, K]; `abs_mean` [K] is mean |x|. The error is sum_i tr(E_i H E_i^T), exact for
    all tokens behind `hessian` [K, K] = 2/n sum x x^T; or that of `inputs` [T, K] alone, cheaper
    when T < K / 2. No scaling is among the candidates, so the result is never worse. Raises
    InputError E-QUANT-GROUP, E-QUANT-NAN, E-QUANT-HESSIAN.
    """
    k = abs_mean.shape[0]
    group_width(k, settings.group_size)
    for weight in weights:
        check_finite(weight)
    energy_of = _energy(hessian, inputs, k)
    energy = sum(energy_of(weight) for weight in weights)
    # A feature that calibration never saw must not get the smallest scale of all.
    seen = abs_mean > 0
    abs_mean = abs_mean.where(seen, abs_mean[seen].mean() if bool(seen.any()) else 1.0)
    best = torch.ones(k)
    unscaled = least = _error(weights, best, settings, energy_of)
    weight_mean, ratio, duo = _weight_mean(weights, settings), None, False
    for tried_ratio, tried_duo in _candidates(settings):
        scales = _scales(abs_mean, weight_mean, tried_ratio, tried_duo)
        error = _error(weights, scales, settings, energy_of)
        if error < least:
            best, least, ratio, duo = scales, error, tried_ratio, tried_duo
    share = 1 / energy if energy > 0 else 0.0
    return AwqScales(
        scales=best,
        ratio=ratio,
        duo=duo,
        error=least * share,
        error_unscaled=unscaled * share,
    )


def _candidates(settings: AwqSettings) -> Iterator[tuple[float, bool]]:
    forms = (True, False) if settings.duo_scaling == "both" else (bool(settings.duo_scaling),)
    for duo in forms:
        for step in range(settings.n_grid + 1):
            yield step / settings.n_grid, duo


def _weight_mean(weights: Sequence[torch.Tensor], settings: AwqSettings) -> torch.Tensor:
    """Mean of |w| over all outputs, each group first brought to a largest magnitude of 1."""
    k = weights[0].shape[1]
    total, width = torch.zeros(k, dtype=torch.float64), group_width(k, settings.group_size)
    for weight in weights:
        for rows in weight.split(ROWS):
            groups = rows.float().abs().view(len(rows), k // width, width)
            groups = groups / (groups.amax(dim=2, keepdim=True) + 1e-6)
            total += groups.view(len(rows), k).sum(dim=0)
    return (total / sum(len(weight) for weight in weights)).float()


def _scales(
    abs_mean: torch.Tensor, weight_mean: torch.Tensor, ratio: float, duo: bool
) -> torch.Tensor:
    scales = abs_mean.float().pow(ratio)
    if duo:
        scales = scales / (weight_mean.pow(1 - ratio) + LEAST)
    scales = scales.clamp(min=LEAST)
    return scales / (scales.max() * scales.min()).sqrt()


def _error(
    weights: Sequence[torch.Tensor],
    scales: torch.Tensor,
    settings: AwqSettings,
    energy_of: Callable[[torch.Tensor], float],
) -> float:
    """Output error when weights are rounded after scaling; in strips, to bound memory."""
    k = len(scales)
    width, total = group_width(k, settings.group_size), 0.0
    for weight in weights:
        grid = settings.grid(weight)
        for rows in weight.split(ROWS):
            scaled = rows.float() * scales
            groups = scaled.view(len(rows), k // width, width)
            total += energy_of((grid.rounded(groups, dim=2).view_as(scaled) - scaled).div_(scales))
    return total


def _energy(
    hessian: torch.Tensor | None, inputs: torch.Tensor | None, k: int
) -> Callable[[torch.Tensor], float]:
    """tr(M H M^T) as a function of M [N, K], by H or by the inputs that would make it."""
    if (hessian is None) == (inputs is None):
        raise InputError("E-QUANT-SETTING", "awq: give a Hessian or inputs, one of the two")
    if hessian is not None:
        check_hessian(hessian, k)
        return lambda matrix: output_energy(matrix, hessian)
    assert inputs is not None
    if not len(inputs):
        raise InputError("E-QUANT-EMPTY", "awq: no inputs. Calibrate with some samples")
    rows = inputs.float()
    return lambda matrix: (
        float((matrix.float() @ rows.T).square().sum(dim=1).double().sum()) * 2 / len(rows)
    )
