"""Quantize the products of one layer with the statistics of their inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from ..formats.scheme import WeightScheme
from ..model.spec import ModelSpec
from ..plan.modules import layer_modules
from .awq import AwqSettings, search_scales
from .cholesky import Factors
from .folder import nearest
from .folding import Fold, fold, fold_map
from .grid import QuantizedWeight
from .method import MethodSettings, Search
from .output import Schemes
from .quality import layer_error, output_energy
from .report import ModuleReport
from .rounding import round_by_gptq, round_to_nearest
from .scheme import pack, scale_dtype
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


def find_folds(
    tensors: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    layer: int,
    statistics: Mapping[str, Statistics],
    schemes: Schemes,
    by: Search | None,
) -> dict[str, FoundScales]:
    """Scales by the first target of a fold; none where a target stays dense.

    Products whose inputs `statistics` lacks are another rank's: their folds are left out.
    """
    if by is None:
        return {}
    found, modules = {}, layer_modules(spec, layer)
    gathered = {modules[first].name: each for first, each in statistics.items()}
    for step in fold_map(spec, layer).folds:
        stored = [scheme for target in step.targets if (scheme := schemes[target]) is not None]
        if step.targets[0] not in gathered or len(stored) < len(step.targets):
            continue
        first = step.targets[0]
        weights = [tensors[f"{target}.weight"] for target in step.targets]
        search = _awq_scales if by == "awq" else _smooth_scales
        scales, ratio = search(weights, gathered[first], min(stored, key=lambda each: each.bits))
        found[first] = FoundScales(step=step, scales=scales, ratio=ratio)
    return found


def fold_rest(
    tensors: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    layer: int,
    folds: Mapping[str, FoundScales],
) -> dict[str, torch.Tensor]:
    """The tensors of a layer that belong to no product, scales folded in: its norms."""
    owned = tuple(f"{module.name}." for module in layer_modules(spec, layer).values())
    return _folded({n: t for n, t in tensors.items() if not n.startswith(owned)}, folds)


def quantize_products(
    tensors: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    layer: int,
    first: str,
    statistics: Statistics,
    schemes: Schemes,
    settings: MethodSettings,
    folds: Mapping[str, FoundScales],
) -> QuantizedLayer:
    """Quantize the products that share the input of `first`, a key of INPUTS; uses `statistics` up.

    `tensors` needs those of these products, `folds` are all of the layer's. Biases and products
    that stay dense are among what comes back. Raises InputError as the algorithms do: E-QUANT-NAN,
    E-QUANT-HESSIAN, E-QUANT-SCALE.
    """
    modules = [layer_modules(spec, layer)[short] for short in INPUTS[first]]
    owned = tuple(f"{module.name}." for module in modules)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(owned)}
    stored = {m.name: scheme for m in modules if (scheme := schemes[m.name]) is not None}
    if not stored:
        return QuantizedLayer(tensors=_folded(own, folds), modules={})
    inputs, found = _Inputs(statistics), folds.get(modules[0].name)
    plain, energies = {}, {}
    for name, scheme in stored.items():
        weight = own[f"{name}.weight"]
        energies[name] = inputs.energy(weight, scheme)
        plain[name] = inputs.error(weight, nearest(weight, scheme), scheme, energies[name])
    if found is not None:
        inputs.divide(found.scales)
    done, reports = _folded(own, folds), {}
    for short, module in zip(INPUTS[first], modules, strict=True):
        if (scheme := stored.get(module.name)) is None:
            continue
        weight, energy = done.pop(f"{module.name}.weight"), energies[module.name]
        if weight is not own[f"{module.name}.weight"]:
            energy = inputs.energy(weight, scheme)
        if settings.feedback:
            result, report = round_by_gptq(weight, inputs.factors, energy, scheme, settings)
        else:
            # Errors of attention scores do not add up like those of outputs: see search_bounds.
            clipping = settings.method == "awq" and short not in ("q", "k")
            clipped_by = inputs.hessian if clipping else None
            result, report = round_to_nearest(weight, clipped_by, scheme)
        if scheme.activation == "int8-static":
            result = dataclasses.replace(result, input_scale=inputs.scale)
        error = report.layer_error
        if error is None:
            error = inputs.error(weight, result, scheme, energy)
        reports[module.name] = dataclasses.replace(
            report,
            layer_error=error,
            nearest_error=plain[module.name],
            ratio=None if found is None else found.ratio,
        )
        done |= pack(module.name, result, scheme)
    return QuantizedLayer(tensors=done, modules=reports)


class _Inputs:
    """What is known about the input of some products; takes the Hessian out of the statistics."""

    def __init__(self, statistics: Statistics) -> None:
        self.rows, self._abs_max = statistics.rows(), statistics.abs_max()
        self.hessian = statistics.take_hessian()

    @property
    def scale(self) -> float:
        """Of static int8 activations."""
        return static_input_scale(self._abs_max)

    @cached_property
    def factors(self) -> Factors:
        """Of the Hessian, for all products that read these inputs; after any division."""
        return Factors(self.hessian)

    def divide(self, scales: torch.Tensor) -> None:
        """Divide the features by scales [K] that the weights are multiplied by."""
        self.hessian.div_(scales[:, None]).div_(scales)
        self.rows, self._abs_max = self.rows / scales, self._abs_max / scales

    def energy(self, weight: torch.Tensor, scheme: WeightScheme) -> float | None:
        """tr(W H W^T) of a weight [N, K]; None where errors are measured on rows instead."""
        return output_energy(weight, self.hessian) if scheme.activation == "float" else None

    def error(
        self,
        weight: torch.Tensor,
        quantized: QuantizedWeight,
        scheme: WeightScheme,
        energy: float | None,
    ) -> float:
        """Share of error in the outputs of a weight [N, K]."""
        values = quantized.dequantize(scheme.bits)
        if scheme.activation != "float":
            static = self.scale if scheme.activation == "int8-static" else None
            return int8_error(weight, values, self.rows, static)
        return layer_error(weight, values, self.hessian, energy)


def _folded(
    tensors: dict[str, torch.Tensor], folds: Mapping[str, FoundScales]
) -> dict[str, torch.Tensor]:
    folded = dict(tensors)
    for each in folds.values():
        folded |= fold(folded, each.step, each.scales)
    return folded


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
    settings = SmoothSettings(static=scheme.activation == "int8-static")
    found = search_alpha(weights, statistics.abs_max(), statistics.rows(), settings)
    return found.scales, found.alpha
