"""How many bytes a rank holds: weights as the loader packs them, KV cache, workspace of a step.

Pure arithmetic over a spec, a plan and, where there are any, the headers of a checkpoint. In
formulas: T rows of a step, L of them sampled, H hidden size, e bytes of the run's dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from ..kernels.cache import PAGE
from ..kernels.weight import LINE_K, TILE
from .formats.bitsandbytes import INT8, NF4
from .modules import LinearModule, atom_ends, feature_slice, head_module, layer_modules
from .plan import ShardPlan
from .quantization import WeightScheme
from .safetensors_file import TensorEntry
from .spec import DTYPES, ModelSpec
from .validate import norm_sizes
from .workspace import StepBytes, step_bytes

FLOAT32 = INT32 = 4
BITS = {"int4": 4, "int8": 8, "bfloat16": 16, "float16": 16, "float32": 32}
SCALES = ("scales", "weight_scale")


@dataclass(frozen=True, kw_only=True)
class WeightBytes:
    """Bytes of a rank's weights, by what they are for.

    `codes`: packed integers. `scales`: scales and zero points. `tables`: where the runs and atoms
    of packed weights begin, and their gather tables. `dense`: products that are not quantized, and
    biases of column-parallel products. `embeddings`: embedding and head, once where they are tied.
    `replicated`: what every rank holds in full, norms and biases of row-parallel products.
    """

    codes: int = 0
    scales: int = 0
    tables: int = 0
    dense: int = 0
    embeddings: int = 0
    replicated: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: WeightBytes) -> WeightBytes:
        names = (field.name for field in fields(self))
        return WeightBytes(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def times(self, count: int) -> WeightBytes:
        return WeightBytes(**{f.name: getattr(self, f.name) * count for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """What one rank holds, in bytes.

    `true_weights` is what its weights would take without padded features. `kv_per_token` is
    2 * layers * kept KV heads * head size * e. `rotary` is the table of cosines and sines.
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
class StoredWeight:
    """A product as it lies in memory, and the number of layers that store it alike.

    `kind` is one of kernels/weight.py. `group_width` input features share a scale; 0 when dense.
    `shuffled`: act-order that loading cannot undo, so that run lengths depend on `g_idx`.
    """

    module: LinearModule
    layers: int
    kind: str
    group_width: int = 0
    scale_bytes: int = 0
    zeros: bool = False
    shuffled: bool = False

    @property
    def exact(self) -> bool:
        """Whether headers say it all. Not so for o_proj with act-order: its bytes are a bound."""
        return not (self.shuffled and self.module.parallel == "row")

    def on_rank(self, plan: ShardPlan, rank: int, padded: bool) -> WeightBytes:
        """Bytes of one layer's product on a rank, its bias included.

        With `padded` False the padded features are left out, as if they had not been added.
        """
        module = self.module
        own = feature_slice(plan, module, rank)
        size = own.size if padded else own.true
        if module.parallel == "column":
            packed = self._packed(size, [(0, module.k)], module.k)
            return packed + WeightBytes(dense=FLOAT32 * size * module.bias)
        true = own.offset + own.true
        end = own.offset + size
        at = [min(own.offset + relative, end) for relative in atom_ends(plan, module, rank)]
        packed = self._packed(module.n, list(pairwise(at)), true)
        return packed + WeightBytes(replicated=FLOAT32 * module.n * module.bias)

    def _packed(self, n: int, atoms: list[tuple[int, int]], true: int) -> WeightBytes:
        """A weight of n outputs over atoms (begin, end) in input features, padded from `true` on.

        columns = 16 * ceil(n / 16); data = columns * packed K * bits / 8; one row of scales and
        zero points a run; int32 offsets of runs and atoms; an int32 gather table of packed K where
        activations are not taken in their order.
        """
        runs = packed_k = 0
        for begin, end in atoms:
            count, length = self._runs(begin, end, true)
            runs, packed_k = runs + count, packed_k + length
        columns = TILE * -(-n // TILE)
        gathered = self.shuffled or packed_k != sum(end - begin for begin, end in atoms)
        tables = INT32 * (runs + 1 + len(atoms) + 1 + packed_k * gathered)
        data = columns * packed_k * BITS[self.kind] // 8
        if not self.group_width:
            return WeightBytes(dense=data, tables=tables)
        scales = runs * columns * (self.scale_bytes + self.zeros)
        return WeightBytes(codes=data, scales=scales, tables=tables)

    def _runs(self, begin: int, end: int, true: int) -> tuple[int, int]:
        """Runs of an atom's features and their packed length: groups, then groups of padding."""
        line = LINE_K[self.kind]
        if not self.group_width:
            return int(end > begin), _whole(end - begin, line)
        if not self.exact:
            groups = min(end - begin, -(-self.module.k // self.group_width))
            return groups, (end - begin + groups * (line - 1)) // line * line
        cut = min(max(begin, true), end)
        a = _groups(begin, cut, 0, self.group_width, line)
        b = _groups(cut, end, true, self.group_width, line)
        return a[0] + b[0], a[1] + b[1]


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
            kv_per_token=2 * spec.layers * kept * spec.head_size * width,
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
            stored = _stored(spec, dtype, module, entries)
            counts[replace(stored, module=replace(module, name=short))] += 1
    return MemoryModel(
        spec=spec,
        dtype=dtype,
        step_rows=step_rows,
        products=tuple(replace(stored, layers=count) for stored, count in counts.items()),
        head=_stored(spec, dtype, head_module(spec), entries),
    )


def _stored(
    spec: ModelSpec, dtype: str, module: LinearModule, entries: Mapping[str, TensorEntry] | None
) -> StoredWeight:
    scheme = spec.quantization.scheme(module.name) if spec.quantization else None
    if scheme is None or scheme.format == NF4:
        return StoredWeight(module=module, layers=1, kind=dtype)
    # argsort of down_proj's g_idx brings its groups together, see shard/load.py.
    shuffled = scheme.act_order and not module.name.endswith("down_proj")
    return StoredWeight(
        module=module,
        layers=1,
        kind=f"int{scheme.bits}",
        group_width=scheme.group_width(module.k),
        scale_bytes=_scale_bytes(spec, module.name, scheme, entries or {}),
        zeros=_has_zeros(module.name, scheme, entries),
        shuffled=shuffled,
    )


def _scale_bytes(
    spec: ModelSpec, name: str, scheme: WeightScheme, entries: Mapping[str, TensorEntry]
) -> int:
    if scheme.format == INT8:
        return FLOAT32
    found = (entries[f"{name}.{s}"].dtype for s in SCALES if f"{name}.{s}" in entries)
    return next(found, spec.torch_dtype).itemsize


def _has_zeros(name: str, scheme: WeightScheme, entries: Mapping[str, TensorEntry] | None) -> bool:
    """AutoAWQ stores zero points of symmetric weights too, and they are read when present."""
    if scheme.format == "awq":
        return entries is None or f"{name}.qzeros" in entries
    return not scheme.symmetric


def _whole(length: int, line: int) -> int:
    return -(-length // line) * line


def _groups(begin: int, end: int, origin: int, width: int, line: int) -> tuple[int, int]:
    """Runs of [begin, end) when cut at origin + i * width, and their length in whole lines."""
    if begin >= end:
        return 0, 0
    first, last = (begin - origin) // width, (end - 1 - origin) // width
    if first == last:
        return 1, _whole(end - begin, line)
    head = origin + (first + 1) * width - begin
    tail = end - (origin + last * width)
    middle = last - first - 1
    return middle + 2, _whole(head, line) + middle * _whole(width, line) + _whole(tail, line)
