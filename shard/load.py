"""Loading one rank's weights: its own slices, padded as the plan says, in the canonical layout."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..kernels.errors import InputError
from ..kernels.layout import PackedWeight, pack_dense, pack_quantized
from .checkpoint import Checkpoint
from .formats import QuantizedSlice, dense, quantized_format
from .modules import LinearModule, atom_ends, feature_slice, head_module, layer_modules
from .plan import ShardPlan, Slice
from .quantization import WeightScheme
from .safetensors_file import SliceReader
from .spec import ModelSpec
from .validate import norm_sizes


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """One layer's share on a rank. Biases and norms are float32; None where the model has none."""

    products: dict[str, PackedWeight]
    biases: dict[str, torch.Tensor | None]
    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class RankWeights:
    """A rank's share of a model. `embedding` is None when the head's weight serves for both."""

    layers: list[LayerWeights]
    embedding: torch.Tensor | None
    head: PackedWeight
    final_norm: torch.Tensor
    bytes_read: int


def load_rank(
    checkpoint: Checkpoint, spec: ModelSpec, plan: ShardPlan, rank: int, dtype: torch.dtype
) -> RankWeights:
    """Read the slices that `rank` owns; dense weights are converted to `dtype`.

    Raises InputError E-CKPT-NAN naming every tensor of this rank that holds a NaN or an infinity,
    and what SliceReader.read raises.
    """
    loader = _Loader(checkpoint, spec, plan, rank, dtype)
    try:
        layers = [loader.layer(layer) for layer in range(spec.layers)]
        head = loader.product(head_module(spec))
        embedding = None if spec.tied_embeddings else loader.embedding()
        final_norm = loader.vector("model.norm.weight", spec.hidden_size)
    finally:
        loader.reader.close()
    if loader.not_finite:
        raise InputError(
            "E-CKPT-NAN",
            f"{checkpoint.folder}: NaN or infinity in {len(loader.not_finite)} tensors:\n  "
            + "\n  ".join(loader.not_finite[:20])
            + "\nThe file is damaged, or quantization met a group of zeros. Download it again or "
            "quantize it again",
        )
    return RankWeights(
        layers=layers,
        embedding=embedding,
        head=head,
        final_norm=final_norm,
        bytes_read=loader.reader.bytes_read,
    )


class _Loader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        plan: ShardPlan,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        self.checkpoint, self.spec, self.plan = checkpoint, spec, plan
        self.rank, self.dtype = rank, dtype
        self.reader = SliceReader()
        self.not_finite: list[str] = []

    def layer(self, layer: int) -> LayerWeights:
        modules = layer_modules(self.spec, layer)
        norms = {
            name.split(".")[-2]: self.vector(name, size)
            for name, size in norm_sizes(self.spec, layer).items()
        }
        return LayerWeights(
            products={short: self.product(module) for short, module in modules.items()},
            biases={short: self.bias(module) for short, module in modules.items()},
            input_norm=norms["input_layernorm"],
            post_attention_norm=norms["post_attention_layernorm"],
            q_norm=norms.get("q_norm"),
            k_norm=norms.get("k_norm"),
        )

    def vector(self, name: str, size: int) -> torch.Tensor:
        values = self.reader.read_range(self.checkpoint.entries[name], 0, size)
        return self._finite(name, values).float()

    def bias(self, module: LinearModule) -> torch.Tensor | None:
        """The bias of a rank's outputs: its slice when column parallel, all when row parallel."""
        if not module.bias:
            return None
        name = f"{module.name}.bias"
        if module.parallel == "row":
            return self.vector(name, module.n)
        own = feature_slice(self.plan, module, self.rank)
        values = torch.zeros(own.size)
        read = self.reader.read_range(
            self.checkpoint.entries[name], own.offset, own.offset + own.true
        )
        values[: own.true] = self._finite(name, read)
        return values

    def embedding(self) -> torch.Tensor:
        own = self.plan.vocab.slice(self.plan.owned(self.rank))
        name = "model.embed_tokens"
        rows = slice(own.offset, own.offset + own.true)
        columns = slice(0, self.spec.hidden_size)
        values = dense.read_slice(self.checkpoint, self.reader, name, rows, columns)
        return self._finite(f"{name}.weight", values).to(self.dtype)

    def product(self, module: LinearModule) -> PackedWeight:
        own = feature_slice(self.plan, module, self.rank)
        cut, whole = (
            slice(own.offset, own.offset + own.true),
            slice(0, module.k if module.parallel == "column" else module.n),
        )
        rows, columns = (cut, whole) if module.parallel == "column" else (whole, cut)
        ends = [0, module.k]
        if module.parallel == "row":
            ends = atom_ends(self.plan, module, self.rank)
        scheme = self.spec.quantization.scheme(module.name) if self.spec.quantization else None
        if scheme is None:
            values = dense.read_slice(self.checkpoint, self.reader, module.name, rows, columns)
            values = self._finite(f"{module.name}.weight", values).to(self.dtype)
            return pack_dense(_pad(values, _padded_shape(module, own), 0), segments=ends)
        form = quantized_format(self.spec.quantization.format)  # pyright: ignore[reportOptionalMemberAccess]
        piece = form.read_slice(self.checkpoint, self.reader, module.name, scheme, rows, columns)
        self._finite(f"{module.name} scales", piece.scales)
        return _pack(piece, module, scheme, own, ends)

    def _finite(self, name: str, values: torch.Tensor) -> torch.Tensor:
        if not values.isfinite().all():
            self.not_finite.append(name)
        return values


def _pack(
    piece: QuantizedSlice, module: LinearModule, scheme: WeightScheme, own: Slice, ends: list[int]
) -> PackedWeight:
    offset = own.offset if module.parallel == "row" else 0
    true = own.true if module.parallel == "row" else module.k
    width = scheme.group_width(module.k)
    runs, segments = group_runs(ends, offset, width)
    shape = _padded_shape(module, own)
    zero = 1 << (scheme.bits - 1)
    groups = [(offset + begin) // width - piece.first_group for begin, _ in runs if begin < true]
    columns = (shape[0], len(runs))
    return pack_quantized(
        _pad(piece.codes, shape, zero),
        _pad(piece.scales[:, groups], columns, 1),
        None if piece.zeros is None else _pad(piece.zeros[:, groups], columns, zero),
        bits=scheme.bits,  # pyright: ignore[reportArgumentType]
        runs=runs,
        segments=segments,
    )


def group_runs(
    ends: list[int], offset: int, group_width: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """Cut atoms at group boundaries.

    `ends` are the ends of a rank's atoms relative to its slice, which begins at feature `offset`
    of the whole weight. Returns the runs (begin, end) and, in runs, the ends of the atoms. A group
    that straddles two atoms becomes two runs, at every degree the same ones.

    >>> group_runs([0, 48, 96], 48, 32)
    ([(0, 16), (16, 48), (48, 80), (80, 96)], [0, 2, 4])
    """
    runs, segments = [], [0]
    for atom_begin, atom_end in pairwise(ends):
        begin = atom_begin
        while begin < atom_end:
            end = min(
                atom_end, (offset + begin) // group_width * group_width + group_width - offset
            )
            runs.append((begin, end))
            begin = end
        segments.append(len(runs))
    return runs, segments


def _padded_shape(module: LinearModule, own: Slice) -> tuple[int, int]:
    return (own.size, module.k) if module.parallel == "column" else (module.n, own.size)


def _pad(values: torch.Tensor, shape: tuple[int, int], fill: int) -> torch.Tensor:
    if tuple(values.shape) == shape:
        return values
    padded = torch.full(shape, fill, dtype=values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded
