"""A model in plain torch and float32, layer by layer: no kernel of isobit, no rank, no cache.

Quantized weights are multiplied out first, so that what differs from the model before quantization
is the codes and scales alone. Memory holds one layer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import linear

from ...kernels import reference
from ...kernels.weights.layout import PackedWeight
from ...shard.checkpoint.checkpoint import open_checkpoint
from ...shard.checkpoint.safetensors_file import SliceReader
from ...shard.contents.expected_tensors import stored_intermediate_size
from ...shard.contents.stored_head import with_stored_head
from ...shard.load.load import LayerWeights, load_head, load_layer
from ...shard.load.validate import check_checkpoint
from ...shard.model.rotary import rotary_tables
from ...shard.model.spec import ModelSpec, read_spec
from ...shard.plan.modules import embedding_module
from ...shard.plan.plan import PlanSettings, ShardPlan, make_plan

FP32 = torch.float32


class PlainModel:
    """The model of a folder, for sequences of up to `max_model_len` tokens.

    Raises InputError as reading a checkpoint does.
    """

    def __init__(self, folder: Path, max_model_len: int | None = None) -> None:
        self._checkpoint = open_checkpoint(folder)
        self.spec = with_stored_head(read_spec(folder, max_model_len), self._checkpoint)
        check_checkpoint(self._checkpoint, self.spec)
        size = stored_intermediate_size(self._checkpoint)
        self._plan = make_plan(self.spec, PlanSettings(degree=1), size)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The residual stream before the first layer, float32 [T, hidden], of ids int64 [T]."""
        entry = self._checkpoint.entries[f"{embedding_module(self.spec).name}.weight"]
        rows, places = ids.unique(return_inverse=True)
        with SliceReader() as reader:
            return reader.read(entry, rows, slice(0, self.spec.hidden_size)).float()[places]

    def layer(self, layer: int) -> PlainLayer:
        """Read a layer and multiply its weights out."""
        weights = load_layer(self._checkpoint, self.spec, self._plan, 0, layer, FP32)
        return PlainLayer(self.spec, self._plan, weights, layer)

    def end(self) -> PlainHead:
        """Read what follows the layers."""
        head, norm = load_head(self._checkpoint, self.spec, self._plan, 0, FP32)
        return PlainHead(self.spec, head, norm)


class PlainHead:
    """The final norm and the product that makes logits."""

    def __init__(self, spec: ModelSpec, head: PackedWeight, norm: torch.Tensor) -> None:
        self._spec, self._norm, self._head = spec, norm, _Product(head)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 [T, hidden] to float32 [T, vocabulary]."""
        normed = reference.rms_norm(hidden, self._norm, self._spec.norm_eps).float()
        return self._head(normed)[:, : self._spec.vocab_size]


class PlainLayer:
    """One layer's two halves; each takes and returns residual streams float32 [S, T, hidden]."""

    def __init__(self, spec: ModelSpec, plan: ShardPlan, weights: LayerWeights, layer: int) -> None:
        self._spec, self._weights, self._window = spec, weights, spec.windows[layer]
        self._products = {name: _Product(packed) for name, packed in weights.products.items()}
        self._head_to_kv = torch.tensor(plan.head_to_kv(0))
        self._cos, self._sin = rotary_tables(spec.rotary, spec.head_size, spec.max_positions)

    def attention(self, hidden: torch.Tensor) -> torch.Tensor:
        weights, head = self._weights, self._spec.head_size
        x = self._normed(hidden, weights.input_norm)
        q, k, v = (self._product(name, x).unflatten(-1, (-1, head)) for name in "qkv")
        q = self._rotated(q, weights.q_norm)
        k = self._rotated(k, weights.k_norm)
        k, v = k[..., self._head_to_kv, :], v[..., self._head_to_kv, :]
        scores = torch.einsum("sqhd,skhd->shqk", q, k) * head**-0.5
        scores.masked_fill_(~self._visible(hidden.shape[1]), -torch.inf)
        seen = torch.einsum("shqk,skhd->sqhd", scores.softmax(-1), v).flatten(2)
        return hidden + self._product("o", seen)

    def mlp(self, hidden: torch.Tensor) -> torch.Tensor:
        x = self._normed(hidden, self._weights.post_attention_norm)
        gate, up = self._product("gate", x), self._product("up", x)
        return hidden + self._product("down", torch.nn.functional.silu(gate) * up)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return reference.rms_norm(x, weight, self._spec.norm_eps).float()

    def _product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        out, bias = self._products[name](x), self._weights.biases[name]
        return out if bias is None else out + bias

    def _rotated(self, heads: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        """Queries or keys [S, T, heads, head size] after their norm, if any, and rotation."""
        if norm is not None:
            heads = self._normed(heads, norm)
        streams, length = heads.shape[:2]
        positions = torch.arange(length).repeat(streams)
        rotated = reference.rope(heads.flatten(0, 1), self._cos, self._sin, positions)
        return rotated.float().view_as(heads)

    def _visible(self, length: int) -> torch.Tensor:
        """Which keys each query sees, bool [T, T]."""
        places = torch.arange(length)
        back = places[:, None] - places[None, :]
        return (back >= 0) & (back < self._window if self._window else True)


class _Product:
    """A weight multiplied out; activations are rounded as its format says."""

    def __init__(self, packed: PackedWeight) -> None:
        self._packed, self._weight = packed, reference.dense(packed)[0].float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 [..., K] to float32 [..., N]."""
        if self._packed.activation == "int8":
            rows = [reference.activations(row[None], self._packed) for row in x.flatten(0, -2)]
            x = torch.stack(rows).float().view_as(x)
        return linear(x, self._weight)
