"""One rank's share of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import torch

from ...kernels.device import Weight


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
