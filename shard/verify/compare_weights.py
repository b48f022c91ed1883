"""A rank's weights in memory against the file, element by element: what differs, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ...kernels.weights.layout import PackedWeight
from ..checkpoint.checkpoint import Checkpoint
from ..load.load import LayerWeights, RankWeights, load_layer, load_rank
from ..model.spec import ModelSpec
from ..plan.modules import (
    LinearModule,
    atom_ends,
    embedding_module,
    head_module,
    layer_modules,
)
from ..plan.plan import ShardPlan
from .fingerprint import Elements, packed_elements

EXTENT = ("run_offsets", "segment_offsets")
"""They tell a kernel how far to read; the weight itself lies in the other tensors."""
ORDER = "order of features"
"""As by g_idx: which input feature a code belongs to."""


@dataclass(frozen=True, kw_only=True)
class WeightDifference:
    """How one weight, bias or norm of a rank differs from the file.

    `part` is "dtype", "shape", "extent" (the weight is right, but kernels are told to read another
    part of it), "bias", "norm", or what differs in a weight: "codes", "scales", "zero points",
    "values", or ORDER. `count` elements differ, in `nbytes` bytes of memory. `row` and `column` are
    those of the first within the rank's piece, `held` and `wanted` its values. `atom` is a plan's,
    `kv_head` a model's; None where they do not apply.
    """

    module: str
    part: str
    count: int
    nbytes: int
    held: str
    wanted: str
    row: int | None = None
    column: int | None = None
    atom: int | None = None
    kv_head: int | None = None


def compare_layer(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    layer: int,
    held: LayerWeights,
    dtype: torch.dtype,
) -> tuple[LayerWeights, list[WeightDifference]]:
    """Read a layer again; return it as it should be, and how `held` differs from it."""
    wanted = load_layer(checkpoint, spec, plan, rank, layer, dtype)
    found: list[WeightDifference] = []
    for name, module in layer_modules(spec, layer).items():
        found += _product(plan, rank, module, held.products[name], wanted.products[name])
        found += _vector(f"{module.name}.bias", "bias", held.biases[name], wanted.biases[name])
    prefix = f"model.layers.{layer}."
    for name, field in (
        ("input_layernorm", "input_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("self_attn.q_norm", "q_norm"),
        ("self_attn.k_norm", "k_norm"),
    ):
        found += _vector(prefix + name, "norm", getattr(held, field), getattr(wanted, field))
    return wanted, found


def compare_ends(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    plan: ShardPlan,
    rank: int,
    held: RankWeights,
    dtype: torch.dtype,
) -> tuple[RankWeights, list[WeightDifference]]:
    """The same for what lies outside the layers: embedding, final norm and head."""
    outside = dataclasses.replace(spec, layers=0, windows=())
    wanted = load_rank(checkpoint, outside, plan, rank, dtype)
    found = list(_product(plan, rank, head_module(spec), held.head, wanted.head))
    found += _vector("model.norm", "norm", held.final_norm, wanted.final_norm)
    name = embedding_module(spec).name
    found += _vector(name, "values", held.embedding, wanted.embedding)
    return wanted, found


def _product(
    plan: ShardPlan, rank: int, module: LinearModule, held: PackedWeight, wanted: PackedWeight
) -> Iterator[WeightDifference]:
    kinds = [(w.kind, w.n, w.k, w.activation, w.input_scale) for w in (held, wanted)]
    if kinds[0] != kinds[1]:
        part = "dtype" if held.kind != wanted.kind else "shape"
        texts = [f"{w.kind} [{w.n}, {w.k}], input scale {w.input_scale}" for w in (held, wanted)]
        yield _whole(module.name, part, wanted.data, *texts)
        return
    names = ("data", "scales", "zeros", "gather", *EXTENT)
    differing = [n for n in names if not _same(getattr(held, n), getattr(wanted, n))]
    if not differing:
        return
    if set(differing) <= set(EXTENT):
        yield _whole(
            module.name,
            "extent",
            wanted.run_offsets,
            f"{held.packed_k} of {wanted.packed_k} packed features, runs {_text(held)}",
            f"{wanted.packed_k} packed features, runs {_text(wanted)}",
        )
        return
    try:
        elements = packed_elements(_with_extent(held, wanted)), packed_elements(wanted)
        mask, part = _mask(*elements)
    except (RuntimeError, IndexError):
        yield _whole(module.name, "shape", wanted.data, "tensors that do not fit", "another shape")
        return
    nbytes = sum(_bytes_apart(getattr(held, n), getattr(wanted, n)) for n in differing)
    if not mask.any():
        return
    row, column = (int(place) for place in mask.nonzero()[0])
    yield WeightDifference(
        module=module.name,
        part=ORDER if "gather" in differing else part,
        count=int(mask.sum()),
        nbytes=nbytes,
        held=_element(elements[0], row, column),
        wanted=_element(elements[1], row, column),
        row=row,
        column=column,
        atom=_atom(plan, rank, module, row, column),
        kv_head=_kv_head(plan, rank, module, row),
    )


def _with_extent(held: PackedWeight, wanted: PackedWeight) -> PackedWeight:
    """Where only the extent is wrong as well, look at all of the weight."""
    if not _same(held.gather, wanted.gather):
        return held
    return dataclasses.replace(
        held, run_offsets=wanted.run_offsets, segment_offsets=wanted.segment_offsets
    )


def _mask(held: Elements, wanted: Elements) -> tuple[torch.Tensor, str]:
    """Which elements [n, k] differ, and what of them does."""
    found = {"codes" if wanted.scales else "values": held.values != wanted.values}
    for name, a, b in (
        ("scales", held.scales, wanted.scales),
        ("zero points", held.zeros, wanted.zeros),
    ):
        if a is not None and b is not None:
            found[name] = a[0][:, a[1]] != b[0][:, b[1]]
        elif a is not b:
            found[name] = torch.ones_like(wanted.values, dtype=torch.bool)
    mask = torch.stack(list(found.values())).any(0)
    return mask, " and ".join(name for name, differs in found.items() if differs.any())


def _element(elements: Elements, row: int, column: int) -> str:
    value = elements.values[row, column].item()
    if elements.scales is None:
        return f"{value:.6g}"
    table, column_of = elements.scales
    zero = ""
    if elements.zeros is not None:
        zero = f", zero point {int(elements.zeros[0][row, elements.zeros[1][column]])}"
    return f"code {value}, scale {float(table[row, column_of[column]]):.6g}{zero}"


def _vector(
    name: str, part: str, held: torch.Tensor | None, wanted: torch.Tensor | None
) -> Iterator[WeightDifference]:
    if held is None and wanted is None:
        return
    if held is None or wanted is None or held.shape != wanted.shape or held.dtype != wanted.dtype:
        here = held if held is not None else wanted
        assert here is not None
        dtypes = held is not None and wanted is not None and held.dtype != wanted.dtype
        yield _whole(name, "dtype" if dtypes else part, here, _kind(held), _kind(wanted))
        return
    if _same(held, wanted):
        return
    places = (held != wanted).nonzero()
    if not len(places):
        return
    first = tuple(int(place) for place in places[0])
    yield WeightDifference(
        module=name,
        part=part,
        count=len(places),
        nbytes=_bytes_apart(held, wanted),
        held=f"{held[first].item():.6g}",
        wanted=f"{wanted[first].item():.6g}",
        row=first[0],
        column=first[1] if len(first) > 1 else None,
    )


def _whole(
    module: str, part: str, tensor: torch.Tensor, held: str, wanted: str
) -> WeightDifference:
    return WeightDifference(
        module=module,
        part=part,
        count=tensor.numel(),
        nbytes=tensor.nbytes,
        held=held,
        wanted=wanted,
    )


def _kind(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _text(weight: PackedWeight) -> str:
    return ", ".join(map(str, weight.run_offsets[-3:].tolist()))


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether two tensors have the same bits."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and _bytes_apart(a, b) == 0


def _bytes_apart(a: torch.Tensor | None, b: torch.Tensor | None) -> int:
    if a is None or b is None or a.nbytes != b.nbytes:
        return max(0 if each is None else each.nbytes for each in (a, b))
    raw = [each.contiguous().flatten().view(torch.uint8) for each in (a, b)]
    return int((raw[0] != raw[1]).sum())


def _atom(plan: ShardPlan, rank: int, module: LinearModule, row: int, column: int) -> int | None:
    owned = plan.owned(rank)
    if module.dimension == "kv_heads":
        return None
    if module.dimension == "vocab":
        ends = plan.vocab.owned_ends(owned)
    else:
        ends = atom_ends(plan, module, rank)
    place = row if module.parallel == "column" else column
    return owned.start + sum(end <= place for end in ends[1:])


def _kv_head(plan: ShardPlan, rank: int, module: LinearModule, row: int) -> int | None:
    if module.dimension != "kv_heads":
        return None
    return plan.kv_heads(rank).start + row // plan.head_size
