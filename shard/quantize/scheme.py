"""How quantized weights are stored: the settings, the scheme of each module, its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isobit.errors import InputError

from ..formats import PACKERS
from ..formats.codes import WholeWeight
from ..formats.scheme import CHANNEL, WeightScheme
from ..model.spec import ModelSpec
from ..plan.modules import layer_modules
from .mixed import MixedWidths, assign_by_patterns
from .output import Format, Schemes, output_format

DENSE_BITS = 16


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """`group_size` -1 means one scale per output row.

    `int8_activations`: W8A8, a scale per token; with `static_activations` one for all tokens, from
    calibration. `keep`: patterns such as "layers.0.*=8", as in
    mixed.assign_by_patterns; 16 stays dense. `mixed` has the widths that a budget chose, of every
    product, `keep` included. `format`: one of output.FORMATS.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    int8_activations: bool = False
    static_activations: bool = False
    keep: tuple[str, ...] = ()
    mixed: MixedWidths | None = None
    format: Format = "compressed-tensors"


def module_schemes(spec: ModelSpec, settings: QuantizeSettings) -> Schemes:
    """Return how each product of the layers is stored.

    Raises InputError E-QUANT-SCHEME for settings that no format stores, E-QUANT-PATTERN for
    patterns, E-QUANT-GROUP naming the products whose inputs the group size does not divide,
    E-QUANT-FORMAT naming all that the output format cannot store.
    """
    _check(settings)
    modules = [
        module for layer in range(spec.layers) for module in layer_modules(spec, layer).values()
    ]
    bits = _widths(settings, [module.name for module in modules])
    quantized = {module.name: module.k for module in modules if bits[module.name] != DENSE_BITS}
    if not quantized:
        raise InputError("E-QUANT-PATTERN", "--keep leaves every linear layer dense: nothing to do")
    _check_groups(quantized, settings.group_size)
    if settings.int8_activations and (wrong := sorted({*bits.values()} - {8, DENSE_BITS})):
        raise InputError("E-QUANT-PATTERN", f"W8A8 with {wrong[0]} bits: expected 8 or 16")
    schemes = {module.name: scheme_of(settings, bits[module.name]) for module in modules}
    if faults := output_format(settings.format).faults(modules, schemes):
        raise InputError(
            "E-QUANT-FORMAT",
            f"{settings.format} cannot store:\n  "
            + "\n  ".join(faults)
            + "\n--format compressed-tensors can",
        )
    return schemes


def pack(module: str, weight: WholeWeight, scheme: WeightScheme) -> dict[str, torch.Tensor]:
    """The tensors that store a weight, by full name."""
    return PACKERS[scheme.format](module, weight, scheme)


def scale_dtype(scheme: WeightScheme) -> torch.dtype | None:
    """What scales are stored in; None: the weight's dtype. GPTQ's and AWQ's kernels read fp16."""
    return torch.float16 if scheme.format in ("gptq", "awq") else None


def _widths(settings: QuantizeSettings, modules: list[str]) -> dict[str, int]:
    if settings.mixed is None:
        return assign_by_patterns(modules, settings.keep, settings.bits)
    return {module: settings.mixed.products[module].bits for module in modules}


def scheme_of(settings: QuantizeSettings, bits: int) -> WeightScheme | None:
    """How a weight of some width is stored; None for 16, which stays dense."""
    if bits == DENSE_BITS:
        return None
    activation = "float"
    if settings.int8_activations:
        activation = "int8-static" if settings.static_activations else "int8-dynamic"
    return output_format(settings.format).scheme(
        bits, settings.group_size, settings.symmetric, activation
    )


def _check(settings: QuantizeSettings) -> None:
    if settings.bits not in (4, 8):
        raise InputError("E-QUANT-SCHEME", f"bits {settings.bits}: expected 4 or 8")
    if settings.bits == 4 and settings.group_size == CHANNEL:
        raise InputError(
            "E-QUANT-SCHEME",
            "4 bits with one scale per output row loses too much: give --group-size 128, 64 or 32",
        )
    if settings.group_size != CHANNEL and (settings.group_size <= 0 or settings.group_size % 8):
        raise InputError(
            "E-QUANT-SCHEME", f"group_size {settings.group_size}: expected a multiple of 8, or -1"
        )
    if settings.static_activations and not settings.int8_activations:
        raise InputError("E-QUANT-SCHEME", "static activations without int8 activations")
    whole = settings.bits == 8 and settings.group_size == CHANNEL and settings.symmetric
    if settings.int8_activations and not whole:
        raise InputError(
            "E-QUANT-SCHEME", "W8A8 has symmetric 8-bit weights with one scale per output row"
        )


def _check_groups(products: Mapping[str, int], group_size: int) -> None:
    if group_size == CHANNEL:
        return
    bad = sorted({(name.split(".", 3)[3], k) for name, k in products.items() if k % group_size})
    if not bad:
        return
    sizes = {k for _, k in bad}
    fits = [g for g in (128, 64, 32, 16, 8) if not any(k % g for k in sizes)]
    raise InputError(
        "E-QUANT-GROUP",
        f"group_size {group_size} does not divide the input features of:\n  "
        + "\n  ".join(f"layers.*.{name}: {k} ({k / group_size:.2f} groups)" for name, k in bad)
        + (
            f"\nGroup sizes that do: {', '.join(map(str, fits))}. Try --group-size {fits[0]}"
            if fits
            else ""
        ),
    )
