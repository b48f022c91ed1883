"""How much of the model's output each product costs when it alone is quantized.

The dense model streams by once, layer by layer. At each layer every product starts a stream of its
own, in which it is quantized and all else dense; it follows the dense stream to the end, where the
two next-token distributions are compared. Memory holds a few copies of one layer; the streams lie
in a file.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from isobit.errors import InputError

from ...shard.checkpoint.safetensors_file import SliceReader
from ...shard.checkpoint.write_file import write_errors
from ...shard.contents.expected_tensors import stored_intermediate_size
from ...shard.formats.scheme import WeightScheme
from ...shard.load.load import LayerWeights, load_layer
from ...shard.model.spec import ModelSpec, spec_from_config
from ...shard.plan.modules import layer_modules
from ...shard.plan.plan import PlanSettings, ShardPlan, make_plan
from ...shard.quantize.folder import nearest
from ...shard.quantize.fused import FusedProducts
from ...shard.quantize.layer import INPUTS, find_folds, fold_rest, quantize_products
from ...shard.quantize.method import MethodSettings
from ...shard.quantize.output import Schemes, quantization_config
from ...shard.quantize.scheme import DENSE_BITS, QuantizeSettings, pack, scheme_of
from ...shard.quantize.source import DenseModel, check_values, layer_tensors
from ...shard.quantize.statistics import Statistics
from ...shard.torch_threads import one_thread
from ..collectives.gather import GatherCollectives
from ..forward.head_runner import open_head
from ..forward.layer_runner import LayerRunner, Look
from .calibrate import Progress, check_samples, embed
from .stored_tensors import stored_tensors

ROWS = 64


@dataclass(frozen=True, kw_only=True)
class SensitivitySettings:
    """How weights are quantized while measuring.

    `method` None is to nearest, and `mse` then Grid's. `widths` are measured; `tokens` bounds how
    many tokens of calibration text streams run over, at least one sample. Statistics for the method
    come from all samples.
    """

    stored: QuantizeSettings
    method: MethodSettings | None
    mse: float = 0.0
    widths: tuple[int, ...] = (4, 8)
    tokens: int = 1024


Costs = dict[str, dict[int, float]]


def measure_sensitivity(
    source: DenseModel,
    products: Sequence[FusedProducts],
    samples: torch.Tensor,
    settings: SensitivitySettings,
    out: Path,
    progress: Progress = lambda done, total: None,
) -> Costs:
    """Mean KL divergence from the dense model in nats, by the name of the products and width.

    `samples` int64 [samples, length]; the products are quantized by the method that will make the
    codes, on the inputs of the dense model, together if fused. Dense (16) costs nothing. With P
    products, W widths and M samples measured this takes about P W M layers / 2 passes of a sample
    through a layer, and 4 P W M length hidden bytes beside `out`. Same input, same bits, as
    quantize_calibrated. Raises InputError E-OUT-WRITE without that space, and what
    quantize_calibrated raises.
    """
    check_samples(source.spec, samples)
    with write_errors(out), one_thread():
        measured = _Measured(source, products, samples, settings, out, progress)
        with measured.streams():
            measured.run()
            return measured.costs()


class _Measured:
    def __init__(
        self,
        source: DenseModel,
        products: Sequence[FusedProducts],
        samples: torch.Tensor,
        settings: SensitivitySettings,
        out: Path,
        progress: Progress,
    ) -> None:
        self._source, self._settings, self._out = source, settings, out
        self._products = [(each, bits) for each in products for bits in settings.widths]
        count = min(len(samples), max(1, settings.tokens // samples.shape[1]))
        picked = torch.arange(count) * len(samples) // count
        # To nearest needs no statistics, so only what is measured has to run.
        self._samples = samples if settings.method else samples[picked]
        self._picked = picked.tolist() if settings.method else list(range(count))
        self._dtype = source.spec.torch_dtype
        self._size = stored_intermediate_size(source.checkpoint)
        self._plan = make_plan(source.spec, PlanSettings(degree=1), self._size)
        self._progress, self._done, self._total = progress, 0, self._steps()

    def _steps(self) -> int:
        """Passes of a sample through a layer or the head; quantizing counts as much as one pass
        of all samples."""
        count, quantizing = len(self._picked), len(self._samples) if self._settings.method else 0
        layers = self._source.spec.layers
        followed = sum(layers - each.layer + 1 for each, _ in self._products) * count
        return layers * len(self._samples) + followed + len(self._products) * quantizing + count

    @contextmanager
    def streams(self) -> Iterator[None]:
        """A float32 tensor [products and widths, measured samples, length, hidden] in a file."""
        shape = (
            len(self._products),
            len(self._picked),
            self._samples.shape[1],
            self._source.spec.hidden_size,
        )
        prefix, parent = f".{self._out.name}.", self._out.absolute().parent
        size = 4 * torch.Size(shape).numel()
        free = shutil.disk_usage(parent).free
        if size > free:
            raise InputError(
                "E-OUT-WRITE",
                f"{parent}: measuring {shape[0]} quantized layers over {shape[1]} samples of "
                f"{shape[2]} tokens takes {size} bytes, {free} are free. Give a smaller --length, "
                "or OUT on a larger disk",
            )
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
            path = Path(folder) / "streams"
            with path.open("wb") as file:
                # Space that is not there must be an error now, not a fault in the mapped memory.
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            flat = torch.from_file(str(path), shared=True, size=size // 4, dtype=torch.float32)
            self._streams = flat.view(shape)
            yield

    def run(self) -> None:
        """Take all streams through the layers."""
        source = self._source
        with SliceReader() as reader:
            self._residual = torch.stack(
                [embed(source.checkpoint, source.spec, reader, ids) for ids in self._samples]
            )
            for layer in range(source.spec.layers):
                self._layer(layer, reader)

    def _layer(self, layer: int, reader: SliceReader) -> None:
        spec, begun = self._source.spec, [p.layer < layer for p, _ in self._products]
        weights = load_layer(self._source.checkpoint, spec, self._plan, 0, layer, self._dtype)
        with closing(self._runner(spec, self._plan, weights, layer)) as runner:
            for stream, yes in zip(self._streams, begun, strict=True):
                if yes:
                    self._advance(runner, stream)
        before = self._residual[self._picked]
        statistics = self._advance_dense(weights, layer)
        del weights
        here = [i for i, (each, _) in enumerate(self._products) if each.layer == layer]
        tensors = layer_tensors(self._source, reader, layer) if here else {}
        for name, tensor in tensors.items():
            check_values(name, tensor)
        for index in here:
            each, bits = self._products[index]
            stream = self._streams[index]
            stream.copy_(before)
            with closing(self._quantized(tensors, statistics, each, bits)) as runner:
                self._advance(runner, stream)

    def _advance(self, runner: LayerRunner, stream: torch.Tensor) -> None:
        for sample in stream:
            sample.copy_(runner.run(sample))
            self._step()

    def _advance_dense(self, weights: LayerWeights, layer: int) -> dict[str, Statistics]:
        """All samples through the dense layer; the statistics that the method wants on the way."""
        gathered: dict[str, Statistics] = {}
        number = 0

        def look(name: str, inputs: torch.Tensor) -> None:
            if name not in gathered:
                gathered[name] = Statistics(inputs.shape[1])
            gathered[name].add(number, inputs)

        wanted = look if self._settings.method else None
        with closing(self._runner(self._source.spec, self._plan, weights, layer, wanted)) as runner:
            for sample in self._residual:
                sample.copy_(runner.run(sample))
                number += 1
                self._step()
        assert wanted is None or set(gathered) == set(INPUTS)
        return gathered

    def _quantized(
        self,
        tensors: Mapping[str, torch.Tensor],
        statistics: Mapping[str, Statistics],
        products: FusedProducts,
        bits: int,
    ) -> LayerRunner:
        """A runner of the layer in which only these products are quantized."""
        source, settings, layer = self._source, self._settings, products.layer
        scheme = scheme_of(settings.stored, bits)
        assert scheme is not None
        names = [module.name for module in layer_modules(source.spec, layer).values()]
        schemes: Schemes = {n: scheme if n in products.names else None for n in names}
        if settings.method is None:
            made = _rounded(tensors, products, scheme, settings.mse)
        else:
            made = _quantized(tensors, source.spec, layer, statistics, schemes, settings.method)
            self._step(len(self._samples))
        config = {**source.config, "quantization_config": quantization_config(schemes)}
        spec = spec_from_config(config, None)
        plan = make_plan(spec, PlanSettings(degree=1), self._size)
        with stored_tensors(made, self._out) as checkpoint:
            weights = load_layer(checkpoint, spec, plan, 0, layer, self._dtype)
        return self._runner(spec, plan, weights, layer)

    def _runner(
        self,
        spec: ModelSpec,
        plan: ShardPlan,
        weights: LayerWeights,
        layer: int,
        look: Look | None = None,
    ) -> LayerRunner:
        length, alone = self._samples.shape[1], GatherCollectives(plan, 0)
        return LayerRunner(spec, plan, 0, weights, layer, self._dtype, length, alone, look)

    def costs(self) -> Costs:
        """Compare the ends of all streams with the dense one's."""
        count = len(self._picked)
        head = open_head(self._source.checkpoint, self._source.spec, self._plan)

        def log_probabilities(rows: torch.Tensor) -> torch.Tensor:
            return head.run(rows).double().log_softmax(dim=1)

        sums = torch.zeros(len(self._products), dtype=torch.float64)
        for number, place in enumerate(self._picked):
            for rows in range(0, self._samples.shape[1], ROWS):
                dense = log_probabilities(self._residual[place, rows : rows + ROWS])
                for index, stream in enumerate(self._streams):
                    ours = log_probabilities(stream[number, rows : rows + ROWS])
                    sums[index] += (dense.exp() * (dense - ours)).sum()
            self._step(1 + len(self._products))
        means = (sums / (count * self._samples.shape[1])).clamp(min=0).tolist()
        costs: Costs = {each.name: {} for each, _ in self._products}
        for (each, bits), mean in zip(self._products, means, strict=True):
            costs[each.name][bits] = mean
        return {name: {**each, DENSE_BITS: 0.0} for name, each in costs.items()}

    def _step(self, steps: int = 1) -> None:
        self._done += steps
        self._progress(self._done, self._total)


def _quantized(
    tensors: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    layer: int,
    statistics: Mapping[str, Statistics],
    schemes: Schemes,
    method: MethodSettings,
) -> dict[str, torch.Tensor]:
    """A layer's tensors in which what has a scheme is quantized by a method."""
    folds = find_folds(tensors, spec, layer, statistics, schemes, method.search)
    made = fold_rest(tensors, spec, layer, folds)
    modules = layer_modules(spec, layer)
    for first, each in statistics.items():
        stored = any(schemes[modules[short].name] is not None for short in INPUTS[first])
        # Quantizing uses statistics up, which the next width needs again.
        own = copy.deepcopy(each) if stored else each
        made |= quantize_products(tensors, spec, layer, first, own, schemes, method, folds).tensors
    return made


def _rounded(
    tensors: Mapping[str, torch.Tensor],
    products: FusedProducts,
    scheme: WeightScheme,
    mse: float,
) -> dict[str, torch.Tensor]:
    """A layer's tensors in which some products are rounded to nearest."""
    made = dict(tensors)
    for name in products.names:
        made |= pack(name, nearest(made.pop(f"{name}.weight"), scheme, mse), scheme)
    return made
