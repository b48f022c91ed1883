"""How the codes of one product are chosen: to nearest, to nearest after clipping, or by GPTQ."""

from __future__ import annotations

import torch

from ..formats.scheme import WeightScheme
from .cholesky import Factors
from .clipping import ClipSettings, clip, search_bounds
from .folder import nearest, weight_sqnr
from .gptq import GptqSettings, quantize_gptq
from .grid import QuantizedWeight
from .method import MethodSettings
from .report import ModuleReport
from .scheme import scale_dtype


def round_by_gptq(
    weight: torch.Tensor,
    factors: Factors,
    energy: float | None,
    scheme: WeightScheme,
    settings: MethodSettings,
) -> tuple[QuantizedWeight, ModuleReport]:
    """Round a weight [N, K] by GPTQ; products that share an input share `factors`.

    `energy` is that of the output, where it is known.
    """
    result = quantize_gptq(
        weight,
        factors,
        GptqSettings(
            bits=scheme.bits,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            desc_act=settings.desc_act,
            static_groups=settings.desc_act,
            damp_percent=settings.damp_percent,
            mse=settings.mse,
            scale_dtype=scale_dtype(scheme),
        ),
        energy,
    )
    stats = result.stats
    return result.weight, ModuleReport(
        bits=scheme.bits,
        sqnr_db=stats.sqnr_db,
        clipped=stats.clipped,
        layer_error=stats.layer_error if scheme.activation == "float" else None,
        damp_percent=stats.damp_percent,
        retries=stats.retries,
        dead=stats.dead,
    )


def round_to_nearest(
    weight: torch.Tensor, clipped_by: torch.Tensor | None, scheme: WeightScheme
) -> tuple[QuantizedWeight, ModuleReport]:
    """Round a weight [N, K] to nearest; clip first where a Hessian `clipped_by` [K, K] is given."""
    kept = weight
    if clipped_by is not None:
        bounds = ClipSettings(
            bits=scheme.bits,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            scale_dtype=scale_dtype(scheme),
        )
        kept = clip(weight, search_bounds(weight, clipped_by, bounds))
    result = nearest(kept, scheme)
    return result, ModuleReport(
        bits=scheme.bits,
        sqnr_db=weight_sqnr(weight, result, scheme),
        clipped=int((kept != weight).sum()) / weight.numel(),
    )
