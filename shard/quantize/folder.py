"""Quantize a dense model folder into a compressed-tensors folder, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...kernels.errors import InputError
from ..checkpoint import Checkpoint, open_checkpoint
from ..formats import pack_quantized
from ..modules import layer_modules
from ..quantization import CHANNEL, WeightScheme
from ..safetensors_file import SliceReader
from ..settings import read_config
from ..spec import ModelSpec, read_spec
from ..validate import check_checkpoint
from ..writer import FolderWriter
from .absmax import quantize_absmax


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """`group_size` -1 means one scale per output row."""

    bits: int = 4
    group_size: int = 128


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """`sqnr_db` holds 10 log10(signal power / error power) of each quantized weight."""

    source_bytes: int
    written_bytes: int
    sqnr_db: dict[str, float]


def quantize_folder(
    model: Path,
    out: Path,
    settings: QuantizeSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizeReport:
    """Write a weight-only quantized copy of a model folder; embeddings and head stay dense.

    `progress(done, total)` counts tensors. Raises InputError: E-QUANT-SCHEME and E-QUANT-GROUP
    for the settings, E-QUANT-TWICE, E-CKPT-NAN, E-OUT-EXISTS, and what reading a folder raises.
    """
    _check_settings(settings)
    spec, config = read_spec(model), read_config(model)
    if spec.quantization is not None:
        raise InputError(
            "E-QUANT-TWICE",
            f"{model}: already quantized ({spec.quantization.method}). Start from the dense model",
        )
    checkpoint = open_checkpoint(model)
    check_checkpoint(checkpoint, spec)
    products = _products(spec)
    _check_groups(products, settings.group_size)
    sqnr: dict[str, float] = {}
    note = f"absmax, {settings.bits} bits, group size {settings.group_size}"
    with SliceReader() as reader, FolderWriter(out, note) as writer:
        for done, (name, entry) in enumerate(checkpoint.entries.items()):
            progress(done, len(checkpoint.entries))
            tensor = reader.read(entry)
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InputError(
                    "E-CKPT-NAN", f"{name}: NaN or infinity in the source. Nothing was written"
                )
            module = name.removesuffix(".weight")
            if module in products:
                sqnr[module] = _write_quantized(writer, module, tensor, settings)
            else:
                writer.add(name, tensor)
        written = writer.finish(
            {**config, "quantization_config": _quantization_config(settings)}, model
        )
        progress(len(checkpoint.entries), len(checkpoint.entries))
    return QuantizeReport(
        source_bytes=_total_bytes(checkpoint), written_bytes=written, sqnr_db=sqnr
    )


def _write_quantized(
    writer: FolderWriter, module: str, weight: torch.Tensor, settings: QuantizeSettings
) -> float:
    result = quantize_absmax(weight, settings.bits, settings.group_size)
    scheme = WeightScheme(
        format="pack-quantized", bits=settings.bits, group_size=settings.group_size
    )
    for name, tensor in pack_quantized.pack(module, result, scheme).items():
        writer.add(name, tensor)
    error = (result.dequantize(settings.bits).double() - weight.double()).square().sum()
    signal = weight.double().square().sum()
    return float(10 * torch.log10(signal / error)) if error else float("inf")


def _products(spec: ModelSpec) -> dict[str, int]:
    """Quantizable modules and their K."""
    return {
        module.name: module.k
        for layer in range(spec.layers)
        for module in layer_modules(spec, layer).values()
    }


def _check_settings(settings: QuantizeSettings) -> None:
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


def _check_groups(products: dict[str, int], group_size: int) -> None:
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


def _quantization_config(settings: QuantizeSettings) -> dict[str, Any]:
    channel = settings.group_size == CHANNEL
    weights = {
        "num_bits": settings.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if channel else "group",
        "group_size": None if channel else settings.group_size,
        "dynamic": False,
        "actorder": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
        "ignore": ["lm_head"],
    }


def _total_bytes(checkpoint: Checkpoint) -> int:
    return sum(entry.nbytes for entry in checkpoint.entries.values())
