"""Quantize the products of one layer with the statistics of their inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..modules import layer_modules
from ..quantization import WeightScheme
from ..spec import ModelSpec
from .awq import AwqSettings, search_scales
from .clipping import ClipSettings, clip, search_bounds
from .folder import nearest, weight_sqnr
from .folding import Fold, fold, fold_map
from .gptq import GptqSettings, quantize_gptq
from .grid import QuantizedWeight
from .output import Schemes
from .quality import layer_error
from .report import ModuleReport
from .scheme import pack, scale_dtype
from .smoothquant import SmoothSettings, int8_error, search_alpha
from .statistics import Statistics

Method = Literal["gptq", "awq", "smoothquant"]
INPUTS = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
"""Products by short name that share an input, under the name of the first."""


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """`damp_percent` and `desc_act` are GPTQ's; see GptqSettings.

    `desc_act` is with static groups, so that groups are runs of input features in every format:
    compressed-tensors 0.20 refuses g_idx.
    """

    method: Method
    damp_percent: float = 0.01
    desc_act: bool = False

    def described(self) -> dict[str, Any]:
        """The settings that the method has, by name."""
        fields = dataclasses.asdict(self)
        return fields if self.method == "gptq" else {"method": self.method}


@dataclass(frozen=True, kw_only=True)
class FoundScales:
    """Scales float32 [K] that go through a fold; `ratio` made them, None when none did better."""

    step: Fold
    scales: torch.Tensor
    ratio: float | None


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """`tensors` by full name take the place of the layer's; `modules` reports by module name."""

    tensors: dict[str, torch.Tensor]
    modules: dict[str, ModuleReport]


def quantize_layer(
    tensors: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    layer: int,
    statistics: Mapping[str, Statistics],
    schemes: Schemes,
    settings: MethodSettings,
) -> QuantizedLayer:
    """Quantize a layer.

    `tensors` are all of the layer's, by full name; `statistics` those of the inputs, by the keys of
    INPUTS. AWQ and SmoothQuant fold scales into norms and products first, which come back dense.
    Raises InputError as the algorithms do: E-QUANT-NAN, E-QUANT-HESSIAN, E-QUANT-SCALE.
    """
    folds = _folds(tensors, spec, layer, statistics, schemes, settings.method)
    folded = dict(tensors)
    for each in folds.values():
        folded |= fold(folded, each.step, each.scales)
    modules = layer_modules(spec, layer)
    reports: dict[str, ModuleReport] = {}
    for first, names in INPUTS.items():
        found = folds.get(modules[first].name)
        plain = inputs = _Inputs(statistics[first], None)
        if found is not None:
            inputs = _Inputs(statistics[first], found.scales)
        for short in names:
            module = modules[short].name
            scheme = schemes[module]
            if scheme is None:
                continue
            original, weight = tensors[f"{module}.weight"], folded.pop(f"{module}.weight")
            if settings.method == "gptq":
                result, report = _gptq(weight, inputs.hessian, scheme, settings)
            else:
                # Errors of attention scores do not add up like those of outputs: see search_bounds.
                clipping = settings.method == "awq" and short not in ("q", "k")
                result, report = _nearest(weight, inputs.hessian if clipping else None, scheme)
            reports[module] = dataclasses.replace(
                report,
                layer_error=inputs.error(weight, result, scheme),
                nearest_error=plain.error(original, nearest(original, scheme), scheme),
                ratio=None if found is None else found.ratio,
            )
            folded |= pack(module, result, scheme)
    return QuantizedLayer(tensors=folded, modules=reports)


class _Inputs:
    """What is known about the input of some products; `scales` [K] divide its features."""

    def __init__(self, statistics: Statistics, scales: torch.Tensor | None) -> None:
        self.hessian, self.rows = statistics.hessian(), statistics.rows()
        if scales is not None:
            self.hessian = self.hessian / scales[:, None] / scales
            self.rows = self.rows / scales

    def error(
        self, weight: torch.Tensor, quantized: QuantizedWeight, scheme: WeightScheme
    ) -> float:
        """Share of error in the outputs of a weight [N, K]."""
        values = quantized.dequantize(scheme.bits)
        if scheme.activation != "float":
            return int8_error(weight, values, self.rows)
        return layer_error(weight, values, self.hessian)


def _folds(
    tensors: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    layer: int,
    statistics: Mapping[str, Statistics],
    schemes: Schemes,
    method: Method,
) -> dict[str, FoundScales]:
    """Scales by the first target of a fold; none for GPTQ, nor where a target stays dense."""
    if method == "gptq":
        return {}
    found, modules = {}, layer_modules(spec, layer)
    gathered = {modules[first].name: each for first, each in statistics.items()}
    for step in fold_map(spec, layer).folds:
        stored = [scheme for target in step.targets if (scheme := schemes[target]) is not None]
        if len(stored) < len(step.targets):
            continue
        first = step.targets[0]
        weights = [tensors[f"{target}.weight"] for target in step.targets]
        search = _awq_scales if method == "awq" else _smooth_scales
        scales, ratio = search(weights, gathered[first], min(stored, key=lambda each: each.bits))
        found[first] = FoundScales(step=step, scales=scales, ratio=ratio)
    return found


def _awq_scales(
    weights: list[torch.Tensor], statistics: Statistics, scheme: WeightScheme
) -> tuple[torch.Tensor, float | None]:
    settings = AwqSettings(
        bits=scheme.bits,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
        scale_dtype=scale_dtype(scheme),
    )
    found = search_scales(weights, statistics.abs_mean(), settings, hessian=statistics.hessian())
    return found.scales, found.ratio


def _smooth_scales(
    weights: list[torch.Tensor], statistics: Statistics, scheme: WeightScheme
) -> tuple[torch.Tensor, float | None]:
    assert scheme.activation == "int8-dynamic"
    found = search_alpha(weights, statistics.abs_max(), statistics.rows(), SmoothSettings())
    return found.scales, found.alpha


def _gptq(
    weight: torch.Tensor, hessian: torch.Tensor, scheme: WeightScheme, settings: MethodSettings
) -> tuple[QuantizedWeight, ModuleReport]:
    result = quantize_gptq(
        weight,
        hessian,
        GptqSettings(
            bits=scheme.bits,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            desc_act=settings.desc_act,
            static_groups=settings.desc_act,
            damp_percent=settings.damp_percent,
            scale_dtype=scale_dtype(scheme),
        ),
    )
    stats = result.stats
    return result.weight, ModuleReport(
        bits=scheme.bits,
        sqnr_db=stats.sqnr_db,
        clipped=stats.clipped,
        damp_percent=stats.damp_percent,
        retries=stats.retries,
        dead=stats.dead,
    )


def _nearest(
    weight: torch.Tensor, hessian: torch.Tensor | None, scheme: WeightScheme
) -> tuple[QuantizedWeight, ModuleReport]:
    """Round to nearest; clip first where a Hessian is given."""
    kept = weight
    if hessian is not None:
        bounds = ClipSettings(
            bits=scheme.bits,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            scale_dtype=scale_dtype(scheme),
        )
        kept = clip(weight, search_bounds(weight, hessian, bounds))
    result = nearest(kept, scheme)
    return result, ModuleReport(
        bits=scheme.bits,
        sqnr_db=weight_sqnr(weight, result, scheme),
        clipped=int((kept != weight).sum()) / weight.numel(),
    )
