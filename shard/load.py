"""Loading one rank's weights: its own slices, padded as the plan says, in the canonical layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels.errors import InputError
from ..kernels.layout import PackedWeight, pack_dense, pack_quantized
from .checkpoint import Checkpoint
from .formats import QuantizedSlice, bitsandbytes
from .formats.codes import grown
from .modules import (
    LinearModule,
    atom_ends,
    embedding_module,
    feature_slice,
    head_module,
    layer_modules,
)
from .plan import ShardPlan, Slice
from .quantization import CHANNEL, WeightScheme
from .runs import Runs, make_runs
from .safetensors_file import Features, SliceReader
from .sources import DummyWeights, StoredWeights, WeightSource
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

    def step_bytes(self) -> int:
        """Bytes of weights that one decode step reads: every product, but few embedding rows."""
        products = [p for layer in self.layers for p in layer.products.values()]
        return sum(product.nbytes for product in [*products, self.head])


def load_rank(
    checkpoint: Checkpoint, spec: ModelSpec, plan: ShardPlan, rank: int, dtype: torch.dtype
) -> RankWeights:
    """Read the slices that `rank` owns; dense weights are converted to `dtype`.

    Raises InputError E-CKPT-NAN naming every tensor of this rank that holds a NaN or an infinity;
    E-QUANT-LABEL, E-QUANT-ZEROS, E-QUANT-GIDX naming every weight whose tensors contradict the
    config; and what SliceReader.read raises.
    """
    with SliceReader() as reader:
        source = StoredWeights(checkpoint, reader, spec)
        return _Loader(source, spec, plan, rank, dtype).load()


def dummy_rank(spec: ModelSpec, plan: ShardPlan, rank: int, dtype: torch.dtype) -> RankWeights:
    """Random weights of a config's shape, the same model at every degree."""
    return _Loader(DummyWeights(), spec, plan, rank, dtype).load()


class _Loader:
    def __init__(
        self,
        source: WeightSource,
        spec: ModelSpec,
        plan: ShardPlan,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        self.source, self.spec, self.plan = source, spec, plan
        self.rank, self.dtype = rank, dtype
        self.not_finite: list[str] = []
        self.too_large: list[str] = []
        self.problems: list[InputError] = []

    def load(self) -> RankWeights:
        spec = self.spec
        layers = [self.layer(layer) for layer in range(spec.layers)]
        weights = RankWeights(
            layers=layers,
            head=self.product(head_module(spec)),
            embedding=None if spec.tied_embeddings else self.embedding(),
            final_norm=self.vector("model.norm.weight", spec.hidden_size),
            bytes_read=self.source.bytes_read,
        )
        self.raise_problems()
        return weights

    def raise_problems(self) -> None:
        """Raise one error for all weights that cannot be used."""
        if self.problems:
            code = self.problems[0].code
            raise InputError(code, "\n".join(p.message for p in self.problems if p.code == code))
        if self.not_finite:
            raise InputError(
                "E-CKPT-NAN",
                f"{self.source.name}: NaN or infinity in {len(self.not_finite)} tensors:\n  "
                + "\n  ".join(self.not_finite[:20])
                + "\nThe file is damaged, or quantization met a group of zeros. Download it again "
                "or quantize it again",
            )

        if self.too_large:
            raise InputError(
                "E-NUM-OVERFLOW",
                f"{self.source.name}: values of {len(self.too_large)} tensors do not fit "
                f"{self.dtype}:\n  " + "\n  ".join(self.too_large[:20]) + "\nThe model was trained "
                f"in {self.spec.dtype}; run with --dtype bfloat16 or float32",
            )

    def layer(self, layer: int) -> LayerWeights:
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
                self.problems.append(problem)
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
            self.problems.append(problem)
            return None

    def vector(self, name: str, size: int) -> torch.Tensor:
        return self._finite(name, self.source.vector(name, size)).float()

    def bias(self, module: LinearModule, order: torch.Tensor | None) -> torch.Tensor | None:
        """The bias of a rank's outputs: its slice when column parallel, all when row parallel."""
        if not module.bias:
            if self.source.has_other_bias(module):
                self.problems.append(
                    InputError(
                        "E-CKPT-BIAS",
                        f"{module.name}.bias is not zero, but by config.json this model has no "
                        "such bias: it would be lost",
                    )
                )
            return None
        values = self.vector(f"{module.name}.bias", module.n)
        if module.parallel == "row":
            return values
        own = feature_slice(self.plan, module, self.rank)
        padded = torch.zeros(own.size)
        padded[: own.true] = values[_owned_features(own, order)]
        return padded

    def embedding(self) -> torch.Tensor:
        module = embedding_module(self.spec)
        own = feature_slice(self.plan, module, self.rank)
        rows = slice(own.offset, own.offset + own.true)
        values = self.source.dense(module, None, rows, slice(0, module.k))
        return self._converted(f"{module.name}.weight", values)

    def product(self, module: LinearModule, order: torch.Tensor | None = None) -> PackedWeight:
        """A rank's part of a weight; `order` permutes the dimension that is cut."""
        own = feature_slice(self.plan, module, self.rank)
        cut = _owned_features(own, order)
        if module.parallel == "column":
            rows, columns, ends = cut, slice(0, module.k), [0, module.k]
        else:
            rows, columns, ends = slice(0, module.n), cut, atom_ends(self.plan, module, self.rank)
        scheme = self._scheme(module)
        if scheme is None or scheme.format == bitsandbytes.NF4:
            values = self.source.dense(module, scheme, rows, columns)
            values = self._converted(f"{module.name}.weight", values)
            return pack_dense(grown(values, _padded_shape(module, own), 0), segments=ends)
        piece = self.source.quantized(module, scheme, rows, columns)
        self._finite(f"{module.name} scales", piece.scales)
        return _pack(piece, module, scheme, own, ends)

    def _scheme(self, module: LinearModule) -> WeightScheme | None:
        return self.spec.scheme(module.name)

    def _converted(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Values in the dtype of the run; the number that does not fit is named."""
        converted = self._finite(name, values).to(self.dtype)
        if name not in self.not_finite and not converted.isfinite().all():
            most = torch.finfo(self.dtype).max
            self.too_large.append(f"{name}: absmax {float(values.abs().max()):.3g} > {most:.5g}")
        return converted

    def _finite(self, name: str, values: torch.Tensor) -> torch.Tensor:
        if not values.isfinite().all():
            self.not_finite.append(name)
        return values


def _owned_features(own: Slice, order: torch.Tensor | None) -> Features:
    """The features of the checkpoint that a slice of the plan covers."""
    true = slice(own.offset, own.offset + own.true)
    return true if order is None else order[true]


def _pack(
    piece: QuantizedSlice, module: LinearModule, scheme: WeightScheme, own: Slice, ends: list[int]
) -> PackedWeight:
    shape = _padded_shape(module, own)
    zero = 1 << (scheme.bits - 1)
    codes, groups, width = grown(piece.codes, shape, zero), piece.groups, scheme.group_size
    if width == CHANNEL:
        width = shape[1]
        if 0 < len(groups) < width:
            # One scale spans the row: padding belongs to it, and is that row's zero point.
            if piece.zeros is not None:
                codes[: piece.zeros.shape[0], len(groups) :] = piece.zeros
            groups = torch.zeros(width, dtype=torch.int64)
    runs = make_runs(ends, groups, width)
    zeros = None if piece.zeros is None else _by_run(piece.zeros, runs, shape[0], zero)
    return pack_quantized(
        codes,
        _by_run(piece.scales, runs, shape[0], 1),
        zeros,
        bits=scheme.bits,
        runs=runs.spans,
        segments=runs.segments,
        order=runs.order,
        activation="float" if scheme.activation == "float" else "int8",
        input_scale=piece.input_scale,
    )


def _by_run(table: torch.Tensor, runs: Runs, rows: int, fill: int) -> torch.Tensor:
    """Columns of a table [n, g] for each run, `fill` for padded runs and rows."""
    out = torch.full((rows, len(runs.groups)), fill, dtype=table.dtype)
    true = [i for i, group in enumerate(runs.groups) if group >= 0]
    out[: table.shape[0], true] = table[:, [runs.groups[i] for i in true]]
    return out


def _padded_shape(module: LinearModule, own: Slice) -> tuple[int, int]:
    return (own.size, module.k) if module.parallel == "column" else (module.n, own.size)
