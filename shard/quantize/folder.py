"""Quantize a dense model folder to nearest, one tensor at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from ..quantization import WeightScheme
from ..safetensors_file import SliceReader
from ..writer import FolderWriter, check_output
from .absmax import quantize_absmax
from .grid import QuantizedWeight
from .output import output_format, repeated_in
from .quality import sqnr_db, squares
from .report import REPORT, ModuleReport, QuantizeReport, report_json
from .scheme import QuantizeSettings, module_schemes, pack, scale_dtype
from .source import check_values, open_dense

__all__ = ["QuantizeReport", "QuantizeSettings", "check_request", "quantize_folder"]


def quantize_folder(
    model: Path,
    out: Path,
    settings: QuantizeSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> QuantizeReport:
    """Write a copy of a model folder, rounded to nearest; embeddings and head stay dense.

    `progress(done, total)` counts tensors. Raises InputError: what module_schemes raises for the
    settings, E-QUANT-TWICE, E-CKPT-NAN, E-OUT-EXISTS, and what reading a folder raises.
    """
    source = open_dense(model)
    schemes = module_schemes(source.spec, settings)
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
            result = nearest(tensor, scheme)
            modules[module] = ModuleReport(
                bits=scheme.bits, sqnr_db=weight_sqnr(tensor, result, scheme)
            )
            for packed, values in pack(module, result, scheme).items():
                writer.add(packed, values)
        quantization = output_format(settings.format).config(schemes)
        report = report_json({"method": "absmax", **dataclasses.asdict(settings)}, modules)
        written = writer.finish(
            {**source.config, "quantization_config": quantization},
            model,
            {REPORT: report, **repeated_in(quantization)},
        )
        progress(len(entries), len(entries))
    return QuantizeReport(source_bytes=source.nbytes, written_bytes=written, modules=modules)


def check_request(model: Path, out: Path, settings: QuantizeSettings) -> None:
    """Raise InputError for all that is wrong with a model, a place and settings before any work:
    what quantize_folder raises but for the values of tensors, and E-OUT-PARENT."""
    module_schemes(open_dense(model).spec, settings)
    check_output(out)


def nearest(weight: torch.Tensor, scheme: WeightScheme) -> QuantizedWeight:
    """Round a weight [N, K] to nearest, as a scheme stores it."""
    return quantize_absmax(
        weight,
        scheme.bits,
        scheme.group_size,
        symmetric=scheme.symmetric,
        scale_dtype=scale_dtype(scheme),
    )


def weight_sqnr(weight: torch.Tensor, quantized: QuantizedWeight, scheme: WeightScheme) -> float:
    """Signal to noise of a quantized weight in decibels."""
    noise = quantized.dequantize(scheme.bits) - weight.float()
    return sqnr_db(float(squares(weight).sum()), float(squares(noise).sum()))
