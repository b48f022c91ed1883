"""One rank of a calibration: runs its shard of a layer, quantizes its share of the products."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isobit.errors import EnvironmentFault

from ...shard.checkpoint.safetensors_file import SliceReader
from ...shard.checkpoint.safetensors_writer import SafetensorsWriter
from ...shard.checkpoint.write_file import write_errors
from ...shard.contents.expected_tensors import stored_intermediate_size
from ...shard.load.load import load_layer
from ...shard.model.spec import ModelSpec, spec_from_config
from ...shard.plan.modules import layer_modules
from ...shard.plan.plan import PlanSettings, ShardPlan, make_plan
from ...shard.quantize.folding import fold_map
from ...shard.quantize.layer import (
    INPUTS,
    FoundScales,
    find_folds,
    fold_rest,
    quantize_products,
)
from ...shard.quantize.output import quantization_config
from ...shard.quantize.scheme import module_schemes
from ...shard.quantize.source import layer_tensors, open_dense
from ...shard.quantize.statistics import Statistics
from ..collectives.interface import Collectives
from ..forward.layer_runner import LayerRunner
from .fingerprint import calibration_software
from .job import CalibrationJob, share_out
from .residual import ResidualReader, ResidualWriter
from .state import FINGERPRINT, REST, kept_layer, layer_file, report_file, residual_file


class CalibrationRank:
    """Answers the driver's requests, which are plain values, in the order of a layer's work:

    "gather" loads the dense layer, "observe" runs a sample through it, "find" searches scales,
    "quantize" writes tensors; "load" reads the quantized layer back, "advance" runs a sample, "end"
    finishes the residual stream behind the layer.
    """

    def __init__(self, job: CalibrationJob, rank: int, collectives: Collectives) -> None:
        """Raises what opening the model raises; EnvironmentFault E-CALIB-HOST when the folder of
        the run is not there."""
        self.job, self.rank, self.collectives = job, rank, collectives
        if not (job.folder / FINGERPRINT).is_file():
            raise EnvironmentFault(
                "E-CALIB-HOST",
                f"rank {rank} on {os.uname().nodename} does not see {job.folder}, where the state "
                "of this run lies: give an OUT on a disk that all hosts share, or run on one host",
            )
        self.source = open_dense(job.model)
        self._schemes = module_schemes(self.source.spec, job.settings.stored)
        config = quantization_config(self._schemes)
        self._quantized = spec_from_config(
            {**self.source.config, "quantization_config": config}, None
        )
        self._own = share_out(self.source.spec, job.degree)[rank]
        self._statistics: dict[str, Statistics] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._runner: LayerRunner | None = None
        self._reader: ResidualReader | None = None
        self._writer: ResidualWriter | None = None
        self._layer = 0

    def described(self) -> dict[str, Any]:
        """What must be equal on all ranks."""
        dtype = self.source.spec.torch_dtype
        return {"software": dict(calibration_software(self.job.model, dtype))}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry a request out; raises InputError as the work does."""
        match request["do"]:
            case "gather":
                self._gather(request["layer"])
            case "observe":
                self._observe(request["sample"])
            case "find":
                return {"folds": self._find()}
            case "quantize":
                self._quantize(request["folds"])
            case "load":
                self._load(request["layer"])
            case "advance":
                self._advance(request["sample"])
            case "end":
                self.close()
            case unknown:
                raise AssertionError(unknown)
        return {}

    def close(self) -> None:
        """Let go of files and of the layer's memory."""
        for each in (self._runner, self._reader, self._writer):
            if each is not None:
                each.close()
        self._runner = self._reader = self._writer = None

    def _gather(self, layer: int) -> None:
        self._start(layer, self.source.spec)

    def _observe(self, sample: int) -> None:
        """Run a sample through the dense layer; `_look` sees the inputs of its products."""
        assert self._runner is not None and self._reader is not None
        self._sample = sample
        self._runner.run(self._reader.read(sample))

    def _look(self, name: str, inputs: torch.Tensor) -> None:
        if name in self._own:
            if name not in self._statistics:
                self._statistics[name] = Statistics(inputs.shape[1])
            self._statistics[name].add(self._sample, inputs)

    def _find(self) -> dict[str, dict[str, Any]]:
        """Search the scales of this rank's products: float32 [K] as bytes, by the first of them."""
        self.close()
        assert set(self._statistics) == set(self._own)
        spec, layer = self.source.spec, self._layer
        own = {short for first in self._own for short in INPUTS[first]}
        modules = layer_modules(spec, layer).items()
        others = tuple(f"{module.name}." for short, module in modules if short not in own)
        with SliceReader() as reader:
            self._tensors = layer_tensors(self.source, reader, layer, others)
        search = self.job.settings.method.search
        found = find_folds(self._tensors, spec, layer, self._statistics, self._schemes, search)
        return {
            first: {"scales": each.scales.float().numpy().tobytes(), "ratio": each.ratio}
            for first, each in found.items()
        }

    def _quantize(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Quantize this rank's products, given the scales that all ranks found."""
        spec, layer = self.source.spec, self._layer
        folds = {
            first: FoundScales(
                step=step,
                scales=torch.from_numpy(np.frombuffer(found[first]["scales"], np.float32).copy()),
                ratio=found[first]["ratio"],
            )
            for step in fold_map(spec, layer).folds
            if (first := step.targets[0]) in found
        }
        if self.rank == 0:
            self._write(REST, fold_rest(self._tensors, spec, layer, folds))
        for first in self._own:
            made = quantize_products(
                self._take(first),
                spec,
                layer,
                first,
                self._statistics.pop(first),
                self._schemes,
                self.job.settings.method,
                folds,
            )
            self._write(first, made.tensors)
            reports = {name: dataclasses.asdict(each) for name, each in made.modules.items()}
            path = self._part(report_file(layer, first))
            with write_errors(path):
                path.write_text(json.dumps(reports))
        self._tensors = {}

    def _take(self, first: str) -> dict[str, torch.Tensor]:
        """The tensors of the products that share an input, which are held no longer."""
        modules = layer_modules(self.source.spec, self._layer)
        prefixes = tuple(f"{modules[short].name}." for short in INPUTS[first])
        names = [name for name in self._tensors if name.startswith(prefixes)]
        return {name: self._tensors.pop(name) for name in names}

    def _load(self, layer: int) -> None:
        self._start(layer, self._quantized)
        if self.rank == 0:
            self._writer = ResidualWriter(
                self._part(residual_file(layer + 1)),
                self.job.samples,
                self.job.length,
                self.source.spec.hidden_size,
            )

    def _advance(self, sample: int) -> None:
        assert self._runner is not None and self._reader is not None
        after = self._runner.run(self._reader.read(sample))
        if self._writer is not None:
            self._writer.write(sample, after)

    def _start(self, layer: int, spec: ModelSpec) -> None:
        """Load a layer, dense or as it was quantized, and open the residual stream before it.

        A quantized layer is read back by the loader of every rank: what is run is what will be.
        """
        self.close()
        dense = spec is self.source.spec
        checkpoint = self.source.checkpoint if dense else kept_layer(self.job.folder, layer)
        plan, dtype = self._plan(spec), spec.torch_dtype
        weights = load_layer(checkpoint, spec, plan, self.rank, layer, dtype)
        self._layer, length = layer, self.job.length
        look = self._look if dense else None
        self._runner = LayerRunner(
            spec, plan, self.rank, weights, layer, dtype, length, self.collectives, look
        )
        self._reader = ResidualReader(self.job.folder / residual_file(layer), length)

    def _plan(self, spec: ModelSpec) -> ShardPlan:
        size = stored_intermediate_size(self.source.checkpoint)
        return make_plan(spec, PlanSettings(degree=self.job.degree), size)

    def _part(self, name: str) -> Path:
        return self.job.folder / f"{name}.{self.job.run}"

    def _write(self, part: str, tensors: Mapping[str, torch.Tensor]) -> None:
        path = self._part(layer_file(self._layer, part))
        with write_errors(path):
            file = SafetensorsWriter(path, {"format": "pt"})
            for name, tensor in tensors.items():
                file.add(name, tensor)
            file.close()
            with path.open("rb") as written:
                os.fsync(written.fileno())
