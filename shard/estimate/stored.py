"""How each product will lie in memory, and the bytes a rank needs for it.

Pure arithmetic over shapes, schemes and, where there are any, the headers of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise

from ...kernels.native import TILE
from ...kernels.weights.weight import LINE_K
from ..checkpoint.safetensors_file import TensorEntry
from ..formats.bitsandbytes import INT8, NF4
from ..formats.scheme import CHANNEL, WeightScheme
from ..model.spec import ModelSpec
from ..plan.modules import LinearModule, atom_ends, feature_slice
from ..plan.plan import ShardPlan

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
class StoredWeight:
    """A product as it lies in memory, and the number of layers that store it alike.

    `kind` is one of kernels/weights/weight.py. `group_width` input features share a scale; 0 when
    dense.
    `shuffled`: act-order that loading cannot undo, so that run lengths depend on `g_idx`.
    `channel`: one scale spans the row; padding belongs to it, so that an atom is one run.
    """

    module: LinearModule
    layers: int
    kind: str
    group_width: int = 0
    scale_bytes: int = 0
    zeros: bool = False
    shuffled: bool = False
    channel: bool = False

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

        columns = 64 * ceil(n / 64); data = columns * packed K * bits / 8; one row of scales and
        zero points a run; int32 offsets of runs and atoms; an int32 gather table of packed K where
        activations are not taken in their order.
        """
        whole = not self.group_width or (self.channel and true > atoms[0][0])
        runs = packed_k = 0
        for begin, end in atoms:
            count, length = self._runs(begin, end, true, whole)
            runs, packed_k = runs + count, packed_k + length
        columns = TILE * -(-n // TILE)
        gathered = self.shuffled or packed_k != sum(end - begin for begin, end in atoms)
        tables = INT32 * (runs + 1 + len(atoms) + 1 + packed_k * gathered)
        data = columns * packed_k * BITS[self.kind] // 8
        if not self.group_width:
            return WeightBytes(dense=data, tables=tables)
        scales = runs * columns * (self.scale_bytes + self.zeros)
        return WeightBytes(codes=data, scales=scales, tables=tables)

    def _runs(self, begin: int, end: int, true: int, whole: bool) -> tuple[int, int]:
        """Runs of an atom's features and their packed length: groups, then groups of padding.

        With `whole` an atom is a single run.
        """
        line = LINE_K[self.kind]
        if whole:
            return int(end > begin), _whole(end - begin, line)
        if not self.exact:
            groups = min(end - begin, -(-self.module.k // self.group_width))
            return groups, (end - begin + groups * (line - 1)) // line * line
        cut = min(max(begin, true), end)
        a = _groups(begin, cut, 0, self.group_width, line)
        b = _groups(cut, end, true, self.group_width, line)
        return a[0] + b[0], a[1] + b[1]


def stored_weight(
    spec: ModelSpec, dtype: str, module: LinearModule, entries: Mapping[str, TensorEntry] | None
) -> StoredWeight:
    """Find out how a module is stored; `entries` say the dtype of scales, else it is the model's.

    They also say whether zero points of symmetric AWQ weights are there, else they are.
    """
    scheme = spec.scheme(module.name)
    if scheme is None or scheme.format == NF4:
        return StoredWeight(module=module, layers=1, kind=dtype)
    # argsort of down_proj's g_idx brings its groups together, see shard/load/load.py.
    shuffled = scheme.act_order and not module.name.endswith("down_proj")
    return StoredWeight(
        module=module,
        layers=1,
        kind=f"int{scheme.bits}",
        group_width=scheme.group_width(module.k),
        scale_bytes=_scale_bytes(spec, module.name, scheme, entries or {}),
        zeros=_has_zeros(module.name, scheme, entries),
        shuffled=shuffled,
        channel=scheme.group_size == CHANNEL,
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
