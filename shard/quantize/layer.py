"""Quantize the products of one layer with the statistics of their inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from ..modules import layer_modules
from ..quantization import WeightScheme
from ..spec import ModelSpec
from .awq import AwqSettings, search_scales
from .cholesky import Factors
from .folder import nearest
from .folding import Fold, fold, fold_map
from .grid import QuantizedWeight
from .method import MethodSettings, Search
from .quality import layer_error
from .report import ModuleReport
from .rounding import round_by_gptq, round_to_nearest
from .scheme import Schemes, pack
from .smoothquant import SmoothSettings, int8_error, search_alpha
from .statistics import Statistics, static_input_scale

INPUTS = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
"""Products by short name that share an input, under the name of the first."""


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
    folds = _folds(tensors, spec, layer, statistics, schemes, settings.search)
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
            if settings.feedback:
                result, report = round_by_gptq(weight, inputs.factors, scheme, settings)
            else:
                # Errors of attention scores do not add up like those of outputs: see search_bounds.
                clipping = settings.method == "awq" and short not in ("q", "k")
                clipped_by = inputs.hessian if clipping else None
                result, report = round_to_nearest(weight, clipped_by, scheme)
            if scheme.activation == "int8-static":
                result = dataclasses.replace(result, input_scale=inputs.scale)
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
        highest = statistics.abs_max()
        if scales is not None:
            self.hessian = self.hessian / scales[:, None] / scales
            self.rows = self.rows / scales
            highest = highest / scales
        self.scale = static_input_scale(highest)

    @cached_property
    def factors(self) -> Factors:
        """Of the Hessian, for all products that read these inputs."""
        return Factors(self.hessian)

    def error(
        self, weight: torch.Tensor, quantized: QuantizedWeight, scheme: WeightScheme
    ) -> float:
        """Share of error in the outputs of a weight [N, K]."""
        values = quantized.dequantize(scheme.bits)
        if scheme.activation != "float":
            static = self.scale if scheme.activation == "int8-static" else None
            return int8_error(weight, values, self.rows, static)
        return layer_error(weight, values, self.hessian)


def _folds(
    tensors: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    layer: int,
    statistics: Mapping[str, Statistics],
    schemes: Schemes,
    by: Search | None,
) -> dict[str, FoundScales]:
    """Scales by the first target of a fold; none for GPTQ, nor where a target stays dense."""
    if by is None:
        return {}
    found, modules = {}, layer_modules(spec, layer)
    gathered = {modules[first].name: each for first, each in statistics.items()}
    for step in fold_map(spec, layer).folds:
        stored = [scheme for target in step.targets if (scheme := schemes[target]) is not None]
        if len(stored) < len(step.targets):
            continue
        first = step.targets[0]
        weights = [tensors[f"{target}.weight"] for target in step.targets]
        search = _awq_scales if by == "awq" else _smooth_scales
        scales, ratio = search(weights, gathered[first], min(stored, key=lambda each: each.bits))
        found[first] = FoundScales(step=step, scales=scales, ratio=ratio)
    return found


def _awq_scales(
    weights: list[torch.Tensor], statistics: Statistics, scheme: WeightScheme
) -> tuple[torch.Tensor, float | None]:
    settings = AwqSettings(
        bits=scheme.bits, group_size=scheme.group_size, symmetric=scheme.symmetric
    )
    found = search_scales(weights, statistics.abs_mean(), settings, hessian=statistics.hessian())
    return found.scales, found.ratio


def _smooth_scales(
    weights: list[torch.Tensor], statistics: Statistics, scheme: WeightScheme
) -> tuple[torch.Tensor, float | None]:
    settings = SmoothSettings(static=scheme.activation == "int8-static")
    found = search_alpha(weights, statistics.abs_max(), statistics.rows(), settings)
    return found.scales, found.alpha
