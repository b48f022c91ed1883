"""Loading pieces of one rank's weights: slices of the checkpoint, padded, laid out, placed."""

from __future__ import annotations

from typing import Generic

import torch

from isobit.errors import DamagedError, InputError

from ...kernels.device import Device, Weight
from ...kernels.weights.finite import all_finite
from ...kernels.weights.layout import PackedWeight, pack_dense, pack_rows
from ..checkpoint.features import Features, part
from ..contents.expected_tensors import norm_sizes
from ..formats import bitsandbytes
from ..formats.codes import grown
from ..formats.scheme import WeightScheme
from ..model.spec import ModelSpec
from ..plan.modules import (
    LinearModule,
    atom_ends,
    embedding_module,
    feature_slice,
    layer_modules,
)
from ..plan.plan import ShardPlan, Slice
from .load_faults import LoadFaults
from .pack_slice import pack_slice
from .rank_weights import LayerWeights
from .sources import WeightSource

PART_ELEMENTS = 1 << 18


class Loader(Generic[Weight]):
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
                    DamagedError(
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
