"""SmoothQuant: part of the activations' outliers moves into the weights before both are rounded.

Xiao et al., arXiv 2211.10438. `folding` puts the inverse into what comes before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from isobit.errors import InputError

from ..formats.scheme import CHANNEL
from .absmax import quantize_absmax
from .grid import check_finite
from .statistics import static_input_scale

LEAST = 1e-5
HALF = 128


@dataclass(frozen=True, kw_only=True)
class SmoothSettings:
    """`alphas` that are tried; one alone is taken as it is, without a search.

    `static` activations have one scale for all tokens, else each token has its own. Raises
    InputError E-QUANT-SETTING.
    """

    alphas: tuple[float, ...] = tuple(step / 20 for step in range(4, 20))
    static: bool = False

    def __post_init__(self) -> None:
        wrong = [alpha for alpha in self.alphas if not 0 <= alpha <= 1]
        if wrong or not self.alphas:
            raise InputError(
                "E-QUANT-SETTING",
                f"smoothquant: alpha {', '.join(map(str, wrong)) or '(none)'}: expected numbers "
                "from 0 (all in the activations) to 1 (all in the weights); 0.5 is usual",
            )


@dataclass(frozen=True, kw_only=True)
class SmoothScales:
    """`scales` float32 [K] divide the inputs and multiply the weights' columns.

    `alpha` None: no smoothing, which did best. `error` is the share of error in the output of the
    W8A8 product, `error_unscaled` that without smoothing. `input_scale` is the static activation
    scale behind smoothing.
    """

    scales: torch.Tensor
    alpha: float | None
    error: float
    error_unscaled: float
    input_scale: float


def smooth_scales(
    weights: Sequence[torch.Tensor], abs_max: torch.Tensor, alpha: float
) -> torch.Tensor:
    """s = max|x|^alpha / max|w|^(1-alpha), float32 [K], for products [N_i, K] that share an input.

    `abs_max` [K] is max |x|. A feature that is always zero gets scale 1.
    """
    highest = torch.stack([weight.abs().amax(dim=0).float() for weight in weights]).amax(dim=0)
    scales = abs_max.float().clamp(min=LEAST).pow(alpha) / highest.clamp(min=LEAST).pow(1 - alpha)
    return torch.where(abs_max > 0, scales.clamp(min=LEAST), torch.ones_like(scales))


def search_alpha(
    weights: Sequence[torch.Tensor],
    abs_max: torch.Tensor,
    inputs: torch.Tensor,
    settings: SmoothSettings,
) -> SmoothScales:
    """Find alpha by the output error of int8 weights per output and int8 activations.

    `weights` [N_i, K] share the input, of which `inputs` [R, K] are samples; `abs_max` [K] is that
    of all tokens. With several alphas no smoothing is tried too, so the result is never worse.
    Raises InputError E-QUANT-EMPTY without inputs, E-QUANT-NAN.
    """
    for weight in weights:
        check_finite(weight)
    if not len(inputs):
        raise InputError(
            "E-QUANT-EMPTY",
            "smoothquant: no inputs to try alpha on. Calibrate with rows_per_sample of at least 1",
        )
    rows = inputs.float()
    wanted = [rows @ weight.float().T for weight in weights]
    energy = sum(float(each.double().square().sum()) for each in wanted)

    def error(scales: torch.Tensor) -> float:
        static = static_input_scale(abs_max / scales) if settings.static else None
        smooth = _rounded_inputs(rows / scales, static)
        total = 0.0
        for weight, output in zip(weights, wanted, strict=True):
            back = quantize_absmax(weight.float() * scales, 8, CHANNEL).dequantize(8)
            total += float((smooth @ back.T - output).double().square().sum())
        return total / energy if energy else 0.0

    ones = torch.ones_like(abs_max, dtype=torch.float32)
    unscaled = error(ones)
    tried = [(alpha, smooth_scales(weights, abs_max, alpha)) for alpha in settings.alphas]
    found: list[tuple[float, float | None, torch.Tensor]] = [
        (error(scales), alpha, scales) for alpha, scales in tried
    ]
    if len(found) > 1:
        found.append((unscaled, None, ones))
    least, alpha, scales = min(found, key=lambda each: each[0])
    return SmoothScales(
        scales=scales,
        alpha=alpha,
        error=least,
        error_unscaled=unscaled,
        input_scale=static_input_scale(abs_max / scales),
    )


def int8_error(
    weight: torch.Tensor, quantized: torch.Tensor, rows: torch.Tensor, input_scale: float | None
) -> float:
    """The share of error in the outputs of W8A8, by some inputs [R, K].

    `weight` [N, K] as it was, `quantized` [N, K] dequantized; `input_scale` None: a scale per
    token. 0 when there are no outputs.
    """
    wanted = rows.float() @ weight.float().T
    rounded = _rounded_inputs(rows.float(), input_scale)
    error = rounded @ quantized.float().T - wanted
    energy = float(wanted.double().square().sum())
    return float(error.double().square().sum()) / energy if energy else 0.0


def _rounded_inputs(rows: torch.Tensor, input_scale: float | None) -> torch.Tensor:
    """Inputs [R, K] after one trip through int8, as the runtime's W8A8 products round them."""
    scale = rows.abs().amax(dim=1, keepdim=True) / (HALF - 1)
    scale = scale if input_scale is None else torch.full_like(scale, input_scale)
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scale).round_().clamp_(-HALF, HALF - 1).mul_(scale)
