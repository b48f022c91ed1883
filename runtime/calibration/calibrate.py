"""Quantizing with calibration: the model streams through its ranks, layer by layer.

Every sample runs through the dense layer, which shows the inputs of its products; the layer is
quantized; every sample then runs through the quantized layer, so that the next one is calibrated on
the errors it will meet, as in GPTQ's authors' code. Products of one layer are all calibrated on one
dense pass through that layer. Ranks hold one layer; the residual stream of all samples and what is
finished lie on the disk, from where a run that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from isobit.errors import InputError

from ...shard.checkpoint.checkpoint import Checkpoint
from ...shard.checkpoint.safetensors_file import SliceReader
from ...shard.checkpoint.write_file import check_new_folder
from ...shard.checkpoint.writer import FolderWriter
from ...shard.model.spec import ModelSpec
from ...shard.names import layer_of
from ...shard.plan.plan import PlanSettings, check_settings
from ...shard.quantize.output import Schemes, quantization_config, repeated_in
from ...shard.quantize.report import REPORT, QuantizeReport, report_json
from ...shard.quantize.scheme import module_schemes
from ...shard.quantize.source import DenseModel, check_values, open_dense
from ...shard.torch_threads import one_thread
from ..ranks.launcher import Launcher
from .fingerprint import calibration_software, run_fingerprint
from .job import CalibrateSettings, CalibrationJob
from .ranks import LaunchedRanks, RankInProcess, Ranks
from .residual import ResidualWriter
from .state import CalibrationState, residual_file

log = logging.getLogger("isobit.runtime")
Progress = Callable[[int, int], None]


def quantize_calibrated(
    model: Path,
    out: Path,
    samples: torch.Tensor,
    settings: CalibrateSettings,
    progress: Progress = lambda done, total: None,
    *,
    degree: int = 1,
    launcher: Launcher | None = None,
    restart: bool = False,
    note: Callable[[str], None] = log.warning,
) -> QuantizeReport:
    """Write a quantized copy of a model folder, calibrated on `samples` int64 [samples, length].

    Activations have the dtype of the model. The same input gives the same bytes, at every degree
    and also when it was stopped and started again: torch runs on one thread meanwhile, since its
    sums depend on their number; the runtime's kernels may use any. A `launcher` starts `degree`
    ranks; without one the only rank is this process. `restart` discards what an earlier run left.
    `progress(done, total)` counts samples through layers; `note` gets a line when the run goes on
    where another one was stopped, and when it is stopped itself.

    A run that is stopped, or loses a rank or room on the disk, leaves its state beside `out`; one
    that cannot work leaves nothing. Raises InputError E-CALIB-TEXT, E-CALIB-LENGTH, E-CALIB-IDS
    for samples, E-CALIB-STATE when an earlier run left something else, E-OUT-BUSY, and what
    make_plan, open_dense, module_schemes, quantize_products and the ranks raise.
    """
    assert launcher is not None or degree == 1
    source, schemes = check_calibration(model, out, settings, degree)
    quantization = quantization_config(schemes)
    check_samples(source.spec, samples)
    state = CalibrationState(out, run_fingerprint(source, samples, settings), restart)
    job = CalibrationJob(
        model=model.absolute(),
        folder=state.folder,
        run=state.run,
        settings=settings,
        samples=samples.shape[0],
        length=samples.shape[1],
        degree=degree,
    )
    with _kept_or_discarded(state, source.spec.layers, note), one_thread():
        if state.resumed:
            note(f"going on {_described(state, source.spec.layers)}; --restart begins anew")
        else:
            _begin(source, samples, state)
        _calibrate(source, job, state, launcher, progress)
        return _assemble(source, quantization, job, state)


def check_calibration(
    model: Path, out: Path, settings: CalibrateSettings, degree: int
) -> tuple[DenseModel, Schemes]:
    """What can be checked without samples; raises as quantize_calibrated does."""
    check_new_folder(out)
    check_settings(PlanSettings(degree=degree))
    source = open_dense(model)
    return source, module_schemes(source.spec, settings.stored)


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


def embed(
    checkpoint: Checkpoint, spec: ModelSpec, reader: SliceReader, ids: torch.Tensor
) -> torch.Tensor:
    """The residual stream before the first layer, float32 [length, hidden], of ids [length]."""
    entry = checkpoint.entries["model.embed_tokens.weight"]
    rows, places = ids.unique(return_inverse=True)
    values = reader.read(entry, rows, slice(0, spec.hidden_size))
    return values.to(spec.torch_dtype).float()[places]


def _begin(source: DenseModel, samples: torch.Tensor, state: CalibrationState) -> None:
    """Look at the tensors that are carried over, before anything takes long, and embed."""
    with SliceReader() as reader:
        for name in _carried(source):
            check_values(name, reader.read(source.checkpoint.entries[name]))
        count, length = samples.shape
        path = state.part(residual_file(0))
        writer = ResidualWriter(path, count, length, source.spec.hidden_size)
        try:
            for number, ids in enumerate(samples):
                writer.write(number, embed(source.checkpoint, source.spec, reader, ids))
        finally:
            writer.close()
    state.keep([residual_file(0)])


def _calibrate(
    source: DenseModel,
    job: CalibrationJob,
    state: CalibrationState,
    launcher: Launcher | None,
    progress: Progress,
) -> None:
    """Quantize all layers that are not finished. Quantizing counts as much as the samples once."""
    count, layers = job.samples, source.spec.layers
    total = (3 * layers - 1) * count
    if state.next_layer == layers - 1 and state.has_layer(layers - 1):
        return
    ranks = _ranks(source, job, launcher)
    try:
        for layer in range(state.next_layer, layers):
            done = 3 * layer * count
            if not state.has_layer(layer):
                _quantize_layer(ranks, job, layer, lambda n, d=done: progress(d + n, total))
                state.keep_layer(layer)
            if layer + 1 < layers:
                ranks.ask(do="load", layer=layer)
                for sample in range(count):
                    progress(done + 2 * count + sample, total)
                    ranks.ask(do="advance", sample=sample)
                ranks.ask(do="end")
                state.advance(layer + 1)
    finally:
        ranks.close()
    progress(total, total)


def _quantize_layer(
    ranks: Ranks, job: CalibrationJob, layer: int, progress: Callable[[int], None]
) -> None:
    """Have the ranks gather statistics, find scales together, and write the layer's tensors."""
    ranks.ask(do="gather", layer=layer)
    for sample in range(job.samples):
        progress(sample)
        ranks.ask(do="observe", sample=sample)
    progress(job.samples)
    folds = {}
    for answer in ranks.ask(do="find"):
        folds |= answer["folds"]
    ranks.ask(do="quantize", folds=folds)


def _ranks(source: DenseModel, job: CalibrationJob, launcher: Launcher | None) -> Ranks:
    if launcher is None:
        return RankInProcess(job, source.spec)
    software = calibration_software(source.folder, source.spec.torch_dtype)
    return LaunchedRanks(job, launcher, software)


def _assemble(
    source: DenseModel, quantization: dict[str, Any], job: CalibrationJob, state: CalibrationState
) -> QuantizeReport:
    """Put the folder together from what is carried over and from the finished layers."""
    settings, modules = job.settings, {}
    named = {**settings.method.described(), **dataclasses.asdict(settings.stored)}
    named |= {"samples": job.samples, "length": job.length}
    note = f"{settings.method.method}, {settings.stored.bits} bits"
    with FolderWriter(state.out, note, state.folder) as writer, SliceReader() as reader:
        for name in _carried(source):
            writer.add(name, reader.read(source.checkpoint.entries[name]))
        for layer in range(source.spec.layers):
            with SliceReader() as kept:
                for name, entry in state.layer_tensors(layer).entries.items():
                    writer.add(name, kept.read(entry))
            modules |= state.layer_reports(layer)
        written = writer.finish(
            {**source.config, "quantization_config": quantization},
            source.folder,
            {REPORT: report_json(named, modules), **repeated_in(quantization)},
        )
    return QuantizeReport(source_bytes=source.nbytes, written_bytes=written, modules=modules)


def _carried(source: DenseModel) -> list[str]:
    """Tensors that belong to no layer that the model runs."""

    def of_layer(name: str) -> bool:
        number = layer_of(name) if name.startswith("model.layers.") else None
        return number is not None and number < source.spec.layers

    return [name for name in source.checkpoint.entries if not of_layer(name)]


@contextmanager
def _kept_or_discarded(
    state: CalibrationState, layers: int, note: Callable[[str], None]
) -> Iterator[None]:
    """Discard the state when the block is through or cannot work, else say what is kept."""
    try:
        yield
    except BaseException as error:
        hopeless = isinstance(error, InputError) and error.code not in (
            "E-OUT-WRITE",
            "E-CALIB-HOST",
        )
        if hopeless or not state.next_layer:
            state.discard()
        else:
            note(
                f"stopped {_described(state, layers)}. The same command goes on from there; remove "
                "the folder to give up"
            )
            state.close()
        raise
    state.discard()


def _described(state: CalibrationState, layers: int) -> str:
    size = state.nbytes / (1 << 20)
    return f"after {state.next_layer} of {layers} layers, kept in {state.folder} ({size:.0f} MiB)"
