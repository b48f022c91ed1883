"""Loading one rank's weights: its own slices, padded as the plan says, in the canonical layout."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from isobit.errors import InputError

from ...kernels import ops
from ...kernels.device import HOST, Device, Weight
from ...kernels.weights.layout import PackedWeight
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.safetensors_file import SliceReader
from ..model.spec import ModelSpec
from ..plan.modules import head_module
from ..plan.plan import ShardPlan
from .load_faults import LoadFaults
from .loader import Loader
from .rank_weights import LayerWeights, RankWeights
from .sources import DummyWeights, StoredWeights, WeightSource


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
        loader = Loader(source, spec, plan, rank, dtype, HOST)
        weights = loader.layer(layer)
    loader.faults.raise_all(source.name, dtype, spec.dtype)
    return weights


def load_head(
    checkpoint: Checkpoint, spec: ModelSpec, plan: ShardPlan, rank: int, dtype: torch.dtype
) -> tuple[PackedWeight, torch.Tensor]:
    """Read what follows the layers: the head and the final norm. Raises what load_rank does."""
    with SliceReader() as reader:
        source = StoredWeights(checkpoint, reader, spec)
        loader = Loader(source, spec, plan, rank, dtype, HOST)
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

    def start(make: Callable[[Loader[Weight]], T]) -> Future[tuple[T, LoadFaults]]:
        loader = Loader(source, spec, plan, rank, dtype, device)
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
