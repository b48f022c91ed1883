"""GPTQ: input features are rounded one after another, the later ones make up for the earlier.

Frantar et al., arXiv 2210.17323. With H = R R^T (R upper triangular) the error of a layer is
|E R|^2 for E = W - Q, so feature k is best rounded at W_k + (sum_{j<k} E_j R_jk) / R_kk: the same
codes as the paper's, without H^-1 (Chee et al., arXiv 2307.13304, show the equivalence).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isobit.errors import InputError

from .cholesky import Factors
from .gptq_sweep import Sweep
from .grid import Grid, QuantizedWeight, check_bits, check_finite, group_width
from .quality import check_hessian, output_energy


@dataclass(frozen=True, kw_only=True)
class GptqSettings:
    """`group_size` -1: one scale per output row.

    `damp_percent` of the mean diagonal is added to the Hessian's diagonal, ten times as much after
    each numerical failure, up to `max_damp_percent`. `desc_act`: features in the order of falling
    diagonal; groups are then formed in that order, and `g_idx` says so, unless `static_groups`
    keeps groups consecutive with scales from the original weights. `mse` is Grid's. `block_size`
    columns share one update of what follows, and their groups' scales are chosen together.
    `scale_dtype` None: the weight's. Raises InputError
    E-QUANT-SCHEME, E-QUANT-SETTING.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    desc_act: bool = False
    static_groups: bool = False
    damp_percent: float = 0.01
    max_damp_percent: float = 1.0
    mse: float = 0.0
    block_size: int = 128
    scale_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        wrong = []
        if not 0 < self.damp_percent <= self.max_damp_percent < float("inf"):
            wrong.append(
                f"damp_percent {self.damp_percent}, max_damp_percent {self.max_damp_percent}: "
                "expected 0 < damp_percent <= max_damp_percent (0.01 and 1 are usual)"
            )
        if not 0 <= self.mse < float("inf"):
            wrong.append(f"mse {self.mse}: expected 0 (off) or a positive exponent (2.4 is usual)")
        if self.block_size < 1:
            wrong.append(f"block_size {self.block_size}: expected a positive number (128 is usual)")
        if wrong:
            raise InputError("E-QUANT-SETTING", "gptq: " + "\n  ".join(wrong))


@dataclass(frozen=True, kw_only=True)
class GptqStats:
    """How well it went.

    `layer_error` is tr((W-Q) H (W-Q)^T) / tr(W H W^T); `sqnr_db` compares weights alone; `clipped`
    is the share of codes at whose place a larger range would have been used. `damp_percent` is the
    damping that worked, after `retries` that did not. `dead` features were always zero while
    calibrating; their weights become zero.
    """

    layer_error: float
    sqnr_db: float
    clipped: float
    damp_percent: float
    retries: int
    dead: int


@dataclass(frozen=True, kw_only=True)
class GptqResult:
    """`weight.g_idx` is None where groups are consecutive input features."""

    weight: QuantizedWeight
    stats: GptqStats


def quantize_gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor | Factors,
    settings: GptqSettings,
    energy: float | None = None,
) -> GptqResult:
    """Quantize a weight [N, K] given H = 2/n sum x x^T [K, K] of its inputs; float32 inside.

    Returns codes uint8 [N, K] in the order of the input features, scales [N, G] in `scale_dtype`,
    zeros uint8 [N, G] or None, g_idx int32 [K] or None. The scale of a group is chosen from weights
    that make up for all errors before its block. Outputs do not depend on each other; products that
    share an input share the work on H when they are given the same Factors of it. `energy` is that
    of the output, tr(W H W^T), where it is known. Raises InputError E-QUANT-GROUP, E-QUANT-NAN, and
    E-QUANT-HESSIAN when even `max_damp_percent` does not help.
    """
    n, k = weight.shape
    width = group_width(k, settings.group_size)
    check_finite(weight)
    factors = hessian if isinstance(hessian, Factors) else Factors(hessian)
    hessian = factors.hessian
    check_hessian(hessian, k)
    dead = hessian.diagonal() == 0
    columns = weight.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    columns[dead] = 0
    grid = Grid(
        bits=settings.bits,
        symmetric=settings.symmetric,
        mse=settings.mse,
        scale_dtype=settings.scale_dtype or weight.dtype,
    )
    fixed = grid.fit(columns.view(-1, width, n), dim=1) if settings.static_groups else None
    order, groups = None, torch.arange(k) // width
    if settings.desc_act:
        order = factors.falling
        columns = columns[order]
        groups = order // width if settings.static_groups else groups
    sweep = next(
        swept
        for factor in factors.damped(
            settings.desc_act, settings.damp_percent, settings.max_damp_percent
        )
        if (swept := Sweep(columns, factor, grid, groups.tolist(), width, fixed)).run(
            settings.block_size
        )
    )
    if energy is None:
        energy = output_energy(weight, hessian)
    return GptqResult(
        weight=_stored(sweep, order, groups, settings),
        stats=GptqStats(
            layer_error=sweep.output_error() / energy if energy > 0 else 0.0,
            sqnr_db=sweep.sqnr_db(weight),
            clipped=sweep.clipped / weight.numel(),
            damp_percent=sweep.factor.damp_percent,
            retries=sweep.factor.retries,
            dead=int(dead.sum()),
        ),
    )


def _stored(
    sweep: Sweep, order: torch.Tensor | None, groups: torch.Tensor, settings: GptqSettings
) -> QuantizedWeight:
    """Codes back in the order of the input features."""
    codes, g_idx = sweep.codes, None
    if order is not None:
        back = order.argsort()
        codes = codes[back]
        if not settings.static_groups and int(groups[-1]):
            g_idx = groups[back].to(torch.int32)
    scales, zeros = sweep.scales(), sweep.zeros()
    return QuantizedWeight(
        codes=codes.T.contiguous(),
        scales=scales.to(sweep.grid.scale_dtype),
        zeros=None if settings.symmetric else zeros.to(torch.uint8),
        g_idx=g_idx,
    )
