"""Quantize a dense model folder to nearest, one tensor at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from isobit.errors import InputError

from ..checkpoint.safetensors_file import SliceReader
from ..checkpoint.write_file import check_new_folder
from ..checkpoint.writer import FolderWriter
from ..formats.scheme import WeightScheme
from .absmax import quantize_absmax
from .grid import QuantizedWeight
from .output import Schemes, quantization_config, repeated_in
from .quality import sqnr_db, squares
from .report import REPORT, ModuleReport, QuantizeReport, report_json
from .scheme import QuantizeSettings, module_schemes, pack, scale_dtype
from .source import DenseModel, check_values, open_dense

__all__ = ["QuantizeReport", "QuantizeSettings", "check_request", "quantize_folder"]


def quantize_folder(
    model: Path,
    out: Path,
    settings: QuantizeSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    mse: float = 0.0,
) -> QuantizeReport:
    """Write a copy of a model folder, rounded to nearest; embeddings and head stay dense.

    `progress(done, total)` counts tensors. `mse` is Grid's. Raises InputError: what module_schemes
    raises for the settings, E-QUANT-SCHEME for static activations, E-QUANT-TWICE, E-CKPT-NAN,
    E-OUT-EXISTS, and what reading a folder raises.
    """
    source, schemes = check_request(model, out, settings)
    entries = source.checkpoint.entries
    modules: dict[str, ModuleReport] = {}
    note = f"absmax, {settings.bits} bits, group size {settings.group_size}"
    with SliceReader() as reader, FolderWriter(out, note) as writer:
        for done, (name, entry) in enumerate(entries.items()):
            progress(done, len(entries))
            tensor = reader.read(entry)
            check_values(name, tensor)
            module = name.removesuffix(".weight")
            scheme = schemes.get(module)
            if scheme is None:
                writer.add(name, tensor)
                continue
            result = nearest(tensor, scheme, mse)
            modules[module] = ModuleReport(
                bits=scheme.bits, sqnr_db=weight_sqnr(tensor, result, scheme)
            )
            for packed, values in pack(module, result, scheme).items():
                writer.add(packed, values)
        quantization = quantization_config(schemes)
        named = {"method": "absmax", "mse": mse, **dataclasses.asdict(settings)}
        written = writer.finish(
            {**source.config, "quantization_config": quantization},
            model,
            {REPORT: report_json(named, modules), **repeated_in(quantization)},
        )
        progress(len(entries), len(entries))
    return QuantizeReport(source_bytes=source.nbytes, written_bytes=written, modules=modules)


def check_request(model: Path, out: Path, settings: QuantizeSettings) -> tuple[DenseModel, Schemes]:
    """What can be checked without reading weights; raises as quantize_folder does."""
    if settings.static_activations:
        raise InputError(
            "E-QUANT-SCHEME", "static activations need calibration: choose gptq or smoothquant"
        )
    check_new_folder(out)
    source = open_dense(model)
    return source, module_schemes(source.spec, settings)


def nearest(weight: torch.Tensor, scheme: WeightScheme, mse: float = 0.0) -> QuantizedWeight:
    """Round a weight [N, K] to nearest, as a scheme stores it; `mse` is Grid's."""
    return quantize_absmax(
        weight,
        scheme.bits,
        scheme.group_size,
        symmetric=scheme.symmetric,
        mse=mse,
        scale_dtype=scale_dtype(scheme),
    )


def weight_sqnr(weight: torch.Tensor, quantized: QuantizedWeight, scheme: WeightScheme) -> float:
    """Signal to noise of a quantized weight in decibels."""
    noise = quantized.dequantize(scheme.bits) - weight.float()
    return sqnr_db(float(squares(weight).sum()), float(squares(noise).sum()))
