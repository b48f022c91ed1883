"""How many bytes a rank holds: weights as the loader packs them, KV cache, workspace of a step.

Pure arithmetic over a spec, a plan and, where there are any, the headers of a checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...kernels.step.kv_cache import PAGE
from ..checkpoint.safetensors_file import TensorEntry
from ..contents.expected_tensors import norm_sizes
from ..model.spec import DTYPES, ModelSpec
from ..plan.modules import head_module, layer_modules
from ..plan.plan import ShardPlan
from .stored import FLOAT32, StoredWeight, WeightBytes, stored_weight
from .workspace import StepBytes, step_bytes


def kv_per_token(spec: ModelSpec, kv_heads: int, width: int) -> int:
    """Bytes of keys and values that `kv_heads` heads of every layer keep of a token, in elements of
    `width` bytes."""
    return 2 * spec.layers * kv_heads * spec.head_size * width


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """What one rank holds, in bytes.

    `true_weights` is what its weights would take without padded features. `rotary` is the table of
    cosines and sines.
    """

    rank: int
    weights: WeightBytes
    true_weights: int
    kv_heads: int
    kv_per_token: int
    rotary: int
    step: StepBytes

    @property
    def padding(self) -> float:
        """Bytes of padding over the bytes without it: 0.05 is five percent more."""
        return self.weights.total / self.true_weights - 1

    def kv(self, length: int) -> int:
        """KV cache of one sequence of `length` tokens: whole pages of 64 tokens."""
        return -(-length // PAGE) * PAGE * self.kv_per_token

    def fixed(self, sequences: int) -> int:
        """Everything but the KV cache, with `sequences` sampled in one step."""
        return self.weights.total + self.rotary + self.step.total(sequences)

    def total(self, length: int, sequences: int = 1) -> int:
        """Everything, for `sequences` sequences of `length` tokens each."""
        return self.fixed(sequences) + sequences * self.kv(length)


@dataclass(frozen=True, kw_only=True)
class MemoryModel:
    """The products of a model as they will lie in memory; `ranks` adds a plan and gives bytes.

    `dtype` is the dtype of dense weights, activations and KV cache; `step_rows` is the most rows T
    that one step takes.
    """

    spec: ModelSpec
    dtype: str
    step_rows: int
    products: tuple[StoredWeight, ...]
    head: StoredWeight

    @property
    def exact(self) -> bool:
        """Whether the bytes of weights are exact, and not a bound for some of them."""
        return all(product.exact for product in self.products)

    def ranks(self, plan: ShardPlan) -> list[RankMemory]:
        """What every rank holds under a plan."""
        width = DTYPES[self.dtype].itemsize
        steps = step_bytes(self.spec, plan, self.step_rows, width)
        return [self._rank(plan, rank, step, width) for rank, step in enumerate(steps)]

    def _rank(self, plan: ShardPlan, rank: int, step: StepBytes, width: int) -> RankMemory:
        spec, owned, kept = self.spec, plan.owned(rank), len(plan.kv_heads(rank))
        cut = (plan.intermediate.slice(owned), plan.vocab.slice(owned))
        weights = true = self._weights(plan, rank, padded=True)
        if any(own.size != own.true for own in cut):
            true = self._weights(plan, rank, padded=False)
        return RankMemory(
            rank=rank,
            weights=weights,
            true_weights=true.total,
            kv_heads=kept,
            kv_per_token=kv_per_token(spec, kept, width),
            rotary=FLOAT32 * spec.max_positions * spec.head_size,
            step=step,
        )

    def _weights(self, plan: ShardPlan, rank: int, padded: bool) -> WeightBytes:
        spec = self.spec
        norms = spec.hidden_size + spec.layers * sum(norm_sizes(spec, 0).values())
        own = plan.vocab.slice(plan.owned(rank))
        embedding = 0 if spec.tied_embeddings else own.true * spec.hidden_size
        head = self.head.on_rank(plan, rank, padded).total
        total = WeightBytes(
            replicated=FLOAT32 * norms,
            embeddings=head + embedding * DTYPES[self.dtype].itemsize,
        )
        for product in self.products:
            total += product.on_rank(plan, rank, padded).times(product.layers)
        return total


def memory_model(
    spec: ModelSpec, dtype: str, step_rows: int, entries: Mapping[str, TensorEntry] | None = None
) -> MemoryModel:
    """Find out how every product will be stored.

    `entries` are the tensors of the checkpoint's headers: they say the dtype of scales and whether
    AWQ's zero points are there. Without them scales have the model's own dtype.
    """
    counts: Counter[StoredWeight] = Counter()
    for layer in range(spec.layers):
        for short, module in layer_modules(spec, layer).items():
            stored = stored_weight(spec, dtype, module, entries)
            counts[replace(stored, module=replace(module, name=short))] += 1
    return MemoryModel(
        spec=spec,
        dtype=dtype,
        step_rows=step_rows,
        products=tuple(replace(stored, layers=count) for stored, count in counts.items()),
        head=stored_weight(spec, dtype, head_module(spec), entries),
    )
