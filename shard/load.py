"""Loading one rank's weights: its own slices, padded as the plan says, in the canonical layout."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ..kernels import ops
from ..kernels.device import HOST, Device, Weight
from ..kernels.errors import InputError
from ..kernels.finite import all_finite
from ..kernels.layout import PackedWeight, pack_dense, pack_rows
from .checkpoint import Checkpoint
from .features import Features, part
from .formats import bitsandbytes
from .formats.codes import grown
from .load_faults import LoadFaults
from .modules import (
    LinearModule,
    atom_ends,
    embedding_module,
    feature_slice,
    head_module,
    layer_modules,
)
from .pack_slice import pack_slice
from .plan import ShardPlan, Slice
from .quantization import WeightScheme
from .safetensors_file import SliceReader
from .sources import DummyWeights, StoredWeights, WeightSource
from .spec import ModelSpec
from .validate import norm_sizes

PART_ELEMENTS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class LayerWeights(Generic[Weight]):
    """One layer's share on a rank. Biases and norms are float32; None where the model has none."""

    products: dict[str, Weight]
    biases: dict[str, torch.Tensor | None]
    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class RankWeights(Generic[Weight]):
    """A rank's share of a model. `embedding` is None when the head's weight serves for both."""

    layers: list[LayerWeights[Weight]]
    embedding: torch.Tensor | None
    head: Weight
    final_norm: torch.Tensor
    bytes_read: int

    def step_bytes(self) -> int:
        """Bytes of weights that one decode step reads: every product, but few embedding rows."""
        products = [p for layer in self.layers for p in layer.products.values()]
        return sum(product.nbytes for product in [*products, self.head])


def load_rank(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    dtype: torch.dtype,
    device: Device[Weight] = HOST,
) -> RankWeights[Weight]:
    """Read the slices that `rank` owns; dense weights are converted to `dtype`. Each goes to
    `device` by itself, as soon as it is laid out.

    As many threads read and lay out as ops use (ops.set_threads). Beside the weights memory holds a
    part of a tensor a thread, except where act-order or nf4 need a tensor as a whole.

    Raises InputError E-CKPT-NAN naming every tensor of this rank that holds a NaN or an infinity;
    E-QUANT-LABEL, E-QUANT-ZEROS, E-QUANT-GIDX naming every weight whose tensors contradict the
    config; what SliceReader.read raises; and InputError E-KERNEL-KIND for weights that the device
    cannot take.
    """
    with SliceReader() as reader:
        source = StoredWeights(checkpoint, reader, spec)
        return _load(source, spec, plan, rank, dtype, device)


def dummy_rank(
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    dtype: torch.dtype,
    device: Device[Weight] = HOST,
) -> RankWeights[Weight]:
    """Random weights of a config's shape, the same model at every degree."""
    return _load(DummyWeights(), spec, plan, rank, dtype, device)


def load_layer(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    layer: int,
    dtype: torch.dtype,
) -> LayerWeights[PackedWeight]:
    """Read one layer as load_rank does; the checkpoint may lack all others. Raises what it does."""
    with SliceReader() as reader:
        source = StoredWeights(checkpoint, reader, spec)
        loader = _Loader(source, spec, plan, rank, dtype, HOST)
        weights = loader.layer(layer)
    loader.faults.raise_all(source.name, dtype, spec.dtype)
    return weights


def load_head(
    checkpoint: Checkpoint, spec: ModelSpec, plan: ShardPlan, rank: int, dtype: torch.dtype
) -> tuple[PackedWeight, torch.Tensor]:
    """Read what follows the layers: the head and the final norm. Raises what load_rank does."""
    with SliceReader() as reader:
        source = StoredWeights(checkpoint, reader, spec)
        loader = _Loader(source, spec, plan, rank, dtype, HOST)
        head = loader.product(head_module(spec))
        norm = loader.vector("model.norm.weight", spec.hidden_size)
    loader.faults.raise_all(source.name, dtype, spec.dtype)
    return head, norm


T = TypeVar("T")


def _load(
    source: WeightSource,
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    dtype: torch.dtype,
    device: Device[Weight],
) -> RankWeights[Weight]:
    """Load in tasks that share nothing; what is wrong is told in the model's order."""
    faults = LoadFaults()

    def start(make: Callable[[_Loader[Weight]], T]) -> Future[tuple[T, LoadFaults]]:
        loader = _Loader(source, spec, plan, rank, dtype, device)
        return pool.submit(lambda: (make(loader), loader.faults))

    def finish(task: Future[tuple[T, LoadFaults]]) -> T:
        made, found = task.result()
        faults.add(found)
        return made

    with ThreadPoolExecutor(ops.threads(), thread_name_prefix="load") as pool:
        # The largest first: threads that are through with theirs share the layers.
        head = start(lambda loader: loader.product(head_module(spec)))
        embedding = None if spec.tied_embeddings else start(lambda loader: loader.embedding())
        tasks = [start(lambda loader, n=n: loader.layer(n)) for n in range(spec.layers)]
        norm = start(lambda loader: loader.vector("model.norm.weight", spec.hidden_size))
        try:
            weights = RankWeights(
                layers=[finish(task) for task in tasks],
                head=finish(head),
                embedding=None if embedding is None else finish(embedding),
                final_norm=finish(norm),
                bytes_read=source.bytes_read,
            )
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    faults.raise_all(source.name, dtype, spec.dtype)
    return weights


class _Loader(Generic[Weight]):
    """Loads one piece at a time and notes what is wrong with it in `faults`."""

    def __init__(
        self,
        source: WeightSource,
        spec: ModelSpec,
        plan: ShardPlan,
        rank: int,
        dtype: torch.dtype,
        device: Device[Weight],
    ) -> None:
        self.source, self.spec, self.plan = source, spec, plan
        self.rank, self.dtype, self.device = rank, dtype, device
        self.faults = LoadFaults()

    def layer(self, layer: int) -> LayerWeights[Weight]:
        modules = layer_modules(self.spec, layer)
        norms = {
            name.split(".")[-2]: self.vector(name, size)
            for name, size in norm_sizes(self.spec, layer).items()
        }
        order = self._mlp_order(layer)
        cut_alike = ("gate", "up", "down")
        orders: dict[str, torch.Tensor | None] = dict.fromkeys(cut_alike, order)
        products = {}
        for name, module in modules.items():
            try:
                products[name] = self.product(module, orders.get(name))
            except InputError as problem:
                if not problem.code.startswith("E-QUANT-"):
                    raise
                self.faults.problems.append(problem)
        return LayerWeights(
            products=products,
            biases={name: self.bias(m, orders.get(name)) for name, m in modules.items()},
            input_norm=norms["input_layernorm"],
            post_attention_norm=norms["post_attention_layernorm"],
            q_norm=norms.get("q_norm"),
            k_norm=norms.get("k_norm"),
        )

    def _mlp_order(self, layer: int) -> torch.Tensor | None:
        try:
            return self.source.mlp_order(layer)
        except InputError as problem:
            self.faults.problems.append(problem)
            return None

    def vector(self, name: str, size: int) -> torch.Tensor:
        """On the device, float32."""
        return self._vector(name, size).to(self.device.device)

    def _vector(self, name: str, size: int) -> torch.Tensor:
        values = self.source.vector(name, size)
        self._finite(name, values)
        return values.float()

    def bias(self, module: LinearModule, order: torch.Tensor | None) -> torch.Tensor | None:
        """The bias of a rank's outputs: its slice when column parallel, all when row parallel."""
        if not module.bias:
            if self.source.has_other_bias(module):
                self.faults.problems.append(
                    InputError(
                        "E-CKPT-BIAS",
                        f"{module.name}.bias is not zero, but by config.json this model has no "
                        "such bias: it would be lost",
                    )
                )
            return None
        values = self._vector(f"{module.name}.bias", module.n)
        if module.parallel == "row":
            return values.to(self.device.device)
        own = feature_slice(self.plan, module, self.rank)
        padded = torch.zeros(own.size)
        padded[: own.true] = values[_owned_features(own, order)]
        return padded.to(self.device.device)

    def embedding(self) -> torch.Tensor:
        module = embedding_module(self.spec)
        own = feature_slice(self.plan, module, self.rank)
        table = torch.empty((own.true, module.k), dtype=self.dtype, device=self.device.device)
        rows = slice(own.offset, own.offset + own.true)
        step = max(1, PART_ELEMENTS // module.k)
        for begin in range(0, own.true, step):
            here = slice(begin, min(begin + step, own.true))
            wanted = part(rows, here.start, here.stop)
            table[here] = self._dense(module, None, wanted, slice(0, module.k))
        return table

    def product(self, module: LinearModule, order: torch.Tensor | None = None) -> Weight:
        """A rank's part of a weight on the device; `order` permutes the dimension that is cut."""
        return self.device.weight(self._packed(module, order))

    def _packed(self, module: LinearModule, order: torch.Tensor | None) -> PackedWeight:
        own = feature_slice(self.plan, module, self.rank)
        cut = _owned_features(own, order)
        if module.parallel == "column":
            rows, columns, ends = cut, slice(0, module.k), [0, module.k]
        else:
            rows, columns, ends = slice(0, module.n), cut, atom_ends(self.plan, module, self.rank)
        scheme = self.spec.scheme(module.name)
        if scheme is not None and scheme.format != bitsandbytes.NF4:
            piece = self.source.quantized(module, scheme, rows, columns)
            self._finite(f"{module.name} scales", piece.scales)
            return pack_slice(piece, scheme, _padded_shape(module, own), ends)
        shape = _padded_shape(module, own)
        if scheme is not None or isinstance(rows, torch.Tensor):
            values = self._dense(module, scheme, rows, columns)
            return pack_dense(grown(values, shape, 0), segments=ends)
        true = rows.stop - rows.start

        def read(wanted: slice) -> torch.Tensor:
            here = part(rows, min(wanted.start, true), min(wanted.stop, true))
            values = self._dense(module, None, here, columns)
            return grown(values, (wanted.stop - wanted.start, shape[1]), 0)

        return pack_rows(read, self.dtype, shape, segments=ends)

    def _dense(
        self, module: LinearModule, scheme: WeightScheme | None, rows: Features, columns: Features
    ) -> torch.Tensor:
        """Values in the dtype of the run; numbers that do not fit are noted."""
        name = f"{module.name}.weight"
        values = self.source.dense(module, scheme, rows, columns)
        if not self._finite(name, values) or values.dtype == self.dtype:
            return values.to(self.dtype)
        converted = values.to(self.dtype)
        if not all_finite(converted):
            most = max(float(values.abs().max()), self.faults.too_large.get(name, 0.0))
            self.faults.too_large[name] = most
        return converted

    def _finite(self, name: str, values: torch.Tensor) -> bool:
        finite = all_finite(values)
        if not finite and name not in self.faults.not_finite:
            self.faults.not_finite.append(name)
        return finite


def _owned_features(own: Slice, order: torch.Tensor | None) -> Features:
    """The features of the checkpoint that a slice of the plan covers."""
    true = slice(own.offset, own.offset + own.true)
    return true if order is None else order[true]


def _padded_shape(module: LinearModule, own: Slice) -> tuple[int, int]:
    return (own.size, module.k) if module.parallel == "column" else (module.n, own.size)
