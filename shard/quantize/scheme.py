"""How quantized weights are stored: the settings, the scheme of each module, the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...kernels.errors import InputError
from ..formats import int_quantized, pack_quantized
from ..formats.codes import WholeWeight
from ..modules import layer_modules
from ..quantization import CHANNEL, WeightScheme
from ..spec import ModelSpec
from .mixed import MixedWidths, assign_by_patterns

DENSE_BITS = 16


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """`group_size` -1 means one scale per output row.

    `int8_activations`: W8A8, a scale per token; with `static_activations` one for all tokens, from
    calibration. `keep`: patterns such as "layers.0.*=8", as in
    mixed.assign_by_patterns; 16 stays dense. `mixed` has the widths that a budget chose, of every
    product, `keep` included.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    int8_activations: bool = False
    static_activations: bool = False
    keep: tuple[str, ...] = ()
    mixed: MixedWidths | None = None


Schemes = Mapping[str, WeightScheme | None]
"""The scheme of each product by module name; None leaves it dense."""


def module_schemes(spec: ModelSpec, settings: QuantizeSettings) -> Schemes:
    """Return how each product of the layers is stored.

    Raises InputError E-QUANT-SCHEME for settings that no format stores, E-QUANT-PATTERN for
    patterns, E-QUANT-GROUP naming the products whose inputs the group size does not divide.
    """
    _check(settings)
    inputs = {
        module.name: module.k
        for layer in range(spec.layers)
        for module in layer_modules(spec, layer).values()
    }
    bits = _widths(settings, list(inputs))
    quantized = {name: k for name, k in inputs.items() if bits[name] != DENSE_BITS}
    if not quantized:
        raise InputError("E-QUANT-PATTERN", "--keep leaves every product dense: nothing to do")
    _check_groups(quantized, settings.group_size)
    if settings.int8_activations and (wrong := sorted({*bits.values()} - {8, DENSE_BITS})):
        raise InputError("E-QUANT-PATTERN", f"W8A8 with {wrong[0]} bits: expected 8 or 16")
    return {name: scheme_of(settings, bits[name]) for name in inputs}


def pack(module: str, weight: WholeWeight, scheme: WeightScheme) -> dict[str, torch.Tensor]:
    """The tensors that store a weight, by full name."""
    form = int_quantized if scheme.format == "int-quantized" else pack_quantized
    return form.pack(module, weight, scheme)


def quantization_config(schemes: Schemes) -> dict[str, Any]:
    """The quantization_config of compressed-tensors.

    "Linear" stands for all products where they have one scheme. Where they have several, each is
    named: for a fused product, which no list names, vLLM tries "Linear" before the names of its
    members, and so would give q, k and v the scheme of the rest.
    """
    members: dict[WeightScheme, list[str]] = {}
    for module, scheme in schemes.items():
        if scheme is not None:
            members.setdefault(scheme, []).append(module)
    rising = sorted(members.items(), key=lambda item: len(item[1]))
    groups = {
        f"group_{number}": _config_group(scheme, ["Linear"] if len(rising) == 1 else modules)
        for number, (scheme, modules) in enumerate(rising)
    }
    dense = [module for module, scheme in schemes.items() if scheme is None]
    return {
        "quant_method": "compressed-tensors",
        "format": rising[-1][0].format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", *dense],
    }


def _widths(settings: QuantizeSettings, modules: list[str]) -> dict[str, int]:
    if settings.mixed is None:
        return assign_by_patterns(modules, settings.keep, settings.bits)
    return {module: settings.mixed.products[module].bits for module in modules}


def scheme_of(settings: QuantizeSettings, bits: int) -> WeightScheme | None:
    """How a weight of some width is stored; None for 16, which stays dense."""
    if bits == DENSE_BITS:
        return None
    if settings.int8_activations:
        return WeightScheme(
            format="int-quantized",
            bits=bits,
            group_size=CHANNEL,
            activation="int8-static" if settings.static_activations else "int8-dynamic",
        )
    return WeightScheme(
        format="pack-quantized",
        bits=bits,
        group_size=settings.group_size,
        symmetric=settings.symmetric,
    )


def _config_group(scheme: WeightScheme, targets: list[str]) -> dict[str, Any]:
    channel = scheme.group_size == CHANNEL
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if channel else "group",
        "group_size": None if channel else scheme.group_size,
        "dynamic": False,
        "actorder": None,
    }
    inputs = None
    if scheme.activation != "float":
        inputs = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token" if scheme.activation == "int8-dynamic" else "tensor",
            "dynamic": scheme.activation == "int8-dynamic",
        }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        "format": scheme.format,
    }


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
