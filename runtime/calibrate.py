"""Quantizing with calibration: the model streams through memory, layer by layer.

Every sample runs through the dense layer, which shows the inputs of its products; the layer is
quantized; every sample then runs through the quantized layer, so that the next one is calibrated on
the errors it will meet, as in GPTQ's authors' code. Products of one layer are all calibrated on one
dense pass through that layer. Memory holds one layer and the residual stream of all samples.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.errors import InputError
from ..shard.checkpoint import SINGLE, Checkpoint
from ..shard.load import LayerWeights, load_layer
from ..shard.plan import PlanSettings, ShardPlan, make_plan
from ..shard.quantize.layer import INPUTS, quantize_layer
from ..shard.quantize.method import MethodSettings
from ..shard.quantize.report import REPORT, ModuleReport, QuantizeReport, report_json
from ..shard.quantize.scheme import QuantizeSettings, module_schemes, quantization_config
from ..shard.quantize.source import DenseModel, check_values, open_dense
from ..shard.quantize.statistics import Statistics
from ..shard.safetensors_file import SliceReader, read_header
from ..shard.safetensors_writer import SafetensorsWriter
from ..shard.spec import ModelSpec, spec_from_config
from ..shard.validate import stored_intermediate_size
from ..shard.writer import FolderWriter, write_errors
from .layer_runner import LayerRunner, Look

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """How weights are stored, and by which method they are chosen."""

    stored: QuantizeSettings
    method: MethodSettings


def quantize_calibrated(
    model: Path,
    out: Path,
    samples: torch.Tensor,
    settings: CalibrateSettings,
    progress: Progress = lambda done, total: None,
) -> QuantizeReport:
    """Write a quantized copy of a model folder, calibrated on `samples` int64 [samples, length].

    Activations have the dtype of the model. The same input gives the same bytes: torch runs on one
    thread meanwhile, since its sums depend on their number; the runtime's kernels may use any.
    `progress(done, total)` counts samples through layers. Raises InputError E-CALIB-TEXT,
    E-CALIB-LENGTH, E-CALIB-IDS for samples, and what quantize_folder and quantize_layer raise.
    """
    source = open_dense(model)
    schemes = module_schemes(source.spec, settings.stored)
    check_samples(source.spec, samples)
    config = {**source.config, "quantization_config": quantization_config(schemes)}
    named = {**settings.method.described(), **dataclasses.asdict(settings.stored)}
    named |= {"samples": samples.shape[0], "length": samples.shape[1]}
    note = f"{settings.method.method}, {settings.stored.bits} bits"
    modules: dict[str, ModuleReport] = {}
    with FolderWriter(out, note) as writer, _one_thread(), SliceReader() as reader:
        stream = _Stream(source, spec_from_config(config, None), samples, reader)
        _carry(source, reader, writer)
        total = source.spec.layers * stream.steps
        for layer in range(source.spec.layers):
            before = layer * stream.steps
            tensors = _layer_tensors(source, reader, layer)
            statistics = stream.statistics(layer, lambda n, b=before: progress(b + n, total))
            made = quantize_layer(tensors, source.spec, layer, statistics, schemes, settings.method)
            del statistics, tensors
            modules |= made.modules
            for name, tensor in made.tensors.items():
                writer.add(name, tensor)
            middle = before + 2 * len(samples)
            stream.advance(layer, made.tensors, out, lambda n, b=middle: progress(b + n, total))
        written = writer.finish(config, model, {REPORT: report_json(named, modules)})
        progress(total, total)
    return QuantizeReport(source_bytes=source.nbytes, written_bytes=written, modules=modules)


def check_samples(spec: ModelSpec, samples: torch.Tensor) -> None:
    """Raise InputError E-CALIB-TEXT, E-CALIB-LENGTH or E-CALIB-IDS for samples that cannot run."""
    count, length = samples.shape
    if not count or not length:
        raise InputError("E-CALIB-TEXT", "no samples to calibrate with: give more text")
    if length > spec.max_positions:
        raise InputError(
            "E-CALIB-LENGTH",
            f"samples of {length} tokens exceed the model's {spec.max_positions} positions: "
            f"give --length {spec.max_positions} or less",
        )
    if outside := samples[(samples < 0) | (samples >= spec.vocab_size)].unique().tolist():
        raise InputError(
            "E-CALIB-IDS",
            f"the tokenizer gives ids that are not in 0..{spec.vocab_size - 1}, the model's "
            f"vocabulary: {', '.join(map(str, outside[:8]))}. It belongs to another model",
        )


class _Stream:
    """The residual stream float32 [samples, length, hidden] on its way through the layers."""

    def __init__(
        self, source: DenseModel, quantized: ModelSpec, samples: torch.Tensor, reader: SliceReader
    ) -> None:
        self._source, self._quantized = source, quantized
        size, settings = stored_intermediate_size(source.checkpoint), PlanSettings(degree=1)
        self._dense_plan = make_plan(source.spec, settings, size)
        self._plan = make_plan(quantized, settings, size)
        self._dtype = source.spec.torch_dtype
        self.residual = embed(source.checkpoint, source.spec, reader, samples)

    @property
    def steps(self) -> int:
        """Steps of progress in a layer: quantizing counts as much as the samples once."""
        return 3 * len(self.residual)

    def statistics(self, layer: int, progress: Callable[[int], None]) -> dict[str, Statistics]:
        """Gather the inputs of the dense layer's products, by the keys of INPUTS."""
        spec, gathered = self._source.spec, {}
        current = 0

        def look(name: str, inputs: torch.Tensor) -> None:
            if name not in gathered:
                gathered[name] = Statistics(inputs.shape[1])
            gathered[name].add(current, inputs)

        weights = load_layer(self._source.checkpoint, spec, self._dense_plan, 0, layer, self._dtype)
        runner = self._runner(spec, self._dense_plan, weights, layer, look)
        for current, sample in enumerate(self.residual):
            progress(current)
            runner.run(sample)
        assert set(gathered) == set(INPUTS)
        return gathered

    def advance(
        self,
        layer: int,
        tensors: Mapping[str, torch.Tensor],
        out: Path,
        progress: Callable[[int], None],
    ) -> None:
        """Replace each sample by what the quantized layer makes of it.

        The layer is read back from a file by the loader of every rank: what is run is what will be.
        """
        with _stored(tensors, out) as checkpoint:
            weights = load_layer(checkpoint, self._quantized, self._plan, 0, layer, self._dtype)
        runner = self._runner(self._quantized, self._plan, weights, layer, None)
        for number, sample in enumerate(self.residual):
            progress(number)
            sample.copy_(runner.run(sample))

    def _runner(
        self,
        spec: ModelSpec,
        plan: ShardPlan,
        weights: LayerWeights,
        layer: int,
        look: Look | None,
    ) -> LayerRunner:
        length = self.residual.shape[1]
        return LayerRunner(spec, plan, weights, layer, self._dtype, length, look)


def embed(
    checkpoint: Checkpoint, spec: ModelSpec, reader: SliceReader, samples: torch.Tensor
) -> torch.Tensor:
    """The residual stream before the first layer, float32 [samples, length, hidden]."""
    entry = checkpoint.entries["model.embed_tokens.weight"]
    ids, places = samples.unique(return_inverse=True)
    rows = reader.read(entry, ids, slice(0, spec.hidden_size))
    check_values(entry.name, rows)
    return rows.to(spec.torch_dtype).float()[places]


@contextmanager
def _stored(tensors: Mapping[str, torch.Tensor], out: Path) -> Iterator[Checkpoint]:
    """A checkpoint of some tensors, beside `out` while the block lasts."""
    prefix, parent = f".{out.name}.", out.absolute().parent
    with write_errors(out), tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        file = SafetensorsWriter(Path(name) / SINGLE, {"format": "pt"})
        for each, tensor in tensors.items():
            file.add(each, tensor)
        file.close()
        entries = {entry.name: entry for entry in read_header(file.path)}
        yield Checkpoint(folder=Path(name), entries=entries)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_layers(source: DenseModel, name: str) -> bool:
    """Whether a tensor belongs to a layer that the model runs."""
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and int(parts[2]) < source.spec.layers


def _carry(source: DenseModel, reader: SliceReader, writer: FolderWriter) -> None:
    for name, entry in source.checkpoint.entries.items():
        if not _is_layers(source, name):
            tensor = reader.read(entry)
            check_values(name, tensor)
            writer.add(name, tensor)


def _layer_tensors(source: DenseModel, reader: SliceReader, layer: int) -> dict[str, torch.Tensor]:
    prefix = f"model.layers.{layer}."
    entries = source.checkpoint.entries.items()
    return {name: reader.read(entry) for name, entry in entries if name.startswith(prefix)}
