"""One quantized weight: everything that its codes, scales, zero points and g_idx show."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..checkpoint.safetensors_file import TensorEntry
from ..formats import bitsandbytes
from .codes import ByteHistogram, CodeMatrix, grouping
from .group_index import GroupIndex, group_index_of
from .quantized import NESTED_SCALES, QuantizedModule
from .scales import ScaleStats, scale_stats
from .tensors import TensorStream
from .zero_points import stored_zeros

SHORTEST_STUCK = 16
"""Codes that are all the same by chance: in 16 of them once in 10^12 groups or more."""


@dataclass(frozen=True, kw_only=True)
class WeightHealth:
    """What one quantized weight looks like.

    `at_ends` is the share of codes that are 0 or the largest. Groups are counted over all output
    rows: `groups` of them, `dead` with nothing but zeros, of which `padding` lie in whole rows or
    columns at the end, as padding puts them; `stuck` have one code throughout that is not zero.
    `zeros` is the histogram of stored zero points, and `means` the mean weight in steps of
    its scale, for zero points read as they are stored and as one less than they mean.
    """

    module: QuantizedModule
    at_ends: float
    groups: int
    dead: int
    padding: int
    stuck: int
    rows: int
    dead_rows: int
    scales: ScaleStats
    zeros: torch.Tensor | None
    means: tuple[float, float]
    index: GroupIndex
    stored_shape: tuple[int, ...] | None


def examine(
    stream: TensorStream, module: QuantizedModule, entries: dict[str, TensorEntry]
) -> WeightHealth:
    """Read the parts of a weight once. `entries` holds those that have the expected shape."""
    parts, scheme = module.parts, module.scheme
    histogram = ByteHistogram()
    words = stream.whole(entries[parts.codes], "codes", histogram.add)
    signed = parts.packing == "bytes"
    matrix = CodeMatrix(
        words=words, n=module.n, k=module.k, bits=scheme.bits, packing=parts.packing
    )
    scales = _scales(stream, module, entries)
    if parts.packing != "nf4":
        scales = scales.T if parts.transposed else scales.view(module.n, -1)
    stored = index = shape = g_idx = None
    if parts.zeros in entries:
        packed = stream.whole(entries[parts.zeros], "zeros")
        stored = stored_zeros(packed, module.n, parts.packing, scheme.bits)
    if parts.groups in entries:
        g_idx = stream.whole(entries[parts.groups], "groups")
        index = group_index_of(g_idx, scheme)
    if parts.shape in entries:
        shape = tuple(stream.whole(entries[parts.shape], "shape").tolist())
    index = index or GroupIndex(state="absent")
    order = g_idx if index.state == "shuffled" else None
    if index.state == "out of range":
        # Nobody knows which features share a group.
        dead, stuck = torch.zeros(scales.shape, dtype=torch.bool), 0
    else:
        dead, stuck = _without_content(matrix, module, scales, stored, order)
    any_dead = bool(dead.any())
    codes = (histogram.codes(scheme.bits, signed) - matrix.tail()).clamp(min=0)
    return WeightHealth(
        module=module,
        at_ends=float((codes[0] + codes[-1]) / codes.sum()),
        groups=dead.numel(),
        dead=int(dead.sum()),
        padding=_padding(dead) if any_dead else 0,
        stuck=stuck,
        rows=module.n,
        dead_rows=int(dead.all(1).sum()) if any_dead and len(dead) == module.n else 0,
        scales=scale_stats(scales, dead.view(scales.shape) if any_dead else None),
        zeros=None if stored is None else stored.flatten().bincount(minlength=1 << scheme.bits),
        means=(0.0, 0.0) if stored is None else _means(codes, stored, module, order),
        index=index,
        stored_shape=shape,
    )


def _scales(
    stream: TensorStream, module: QuantizedModule, entries: dict[str, TensorEntry]
) -> torch.Tensor:
    """The scales; with nf4's double quantization those are codes, and their own scales count."""
    entry = entries[module.parts.scales]
    if entry.dtype.is_floating_point:
        return stream.whole(entry, "scales")
    stream.whole(entry, "scale codes")
    return stream.whole(entries[NESTED_SCALES], "scales")


def _without_content(
    matrix: CodeMatrix,
    module: QuantizedModule,
    scales: torch.Tensor,
    stored: torch.Tensor | None,
    g_idx: torch.Tensor | None,
) -> tuple[torch.Tensor, int]:
    """Groups [n, g] that carry nothing (every code is the zero point, or the scale is 0), and how
    many others have one code throughout.

    nf4 has blocks instead of groups, and no zero point of its own: there the scale decides. By
    chance all codes of a short group may be the same.
    """
    scheme = module.scheme
    if scheme.format == bitsandbytes.NF4:
        return (scales == 0)[None], 0
    if stored is None or (scheme.symmetric and scheme.format == "gptq"):
        # Symmetric means the middle; stored ones that say otherwise are a finding of their own.
        zeros: torch.Tensor | int = 1 << (scheme.bits - 1)
    else:
        zeros = (stored.to(torch.int16) + scheme.zero_offset) & ((1 << scheme.bits) - 1)
    groups = grouping(module.k, scheme, g_idx)
    constant = matrix.constant_groups(groups)
    dead = (constant == zeros) | (scales == 0)
    stuck = (constant >= 0) & ~dead & (groups.counts >= SHORTEST_STUCK)
    return dead, int(stuck.sum())


def _means(
    codes: torch.Tensor, stored: torch.Tensor, module: QuantizedModule, g_idx: torch.Tensor | None
) -> tuple[float, float]:
    """The mean of all codes (a histogram) less that of zero points, from stored ones [n, g], read
    as offset 0 and 1; a group counts as often as it has members."""
    members = grouping(module.k, module.scheme, g_idx).counts.double()
    share = members / (members.sum() * len(stored))
    mean = float((codes * torch.arange(len(codes))).sum() / codes.sum())

    def read_as(offset: int) -> float:
        zeros = (stored.to(torch.int16) + offset) % len(codes)
        return mean - float((zeros.double() @ share).sum())

    return read_as(0), read_as(1)


def _padding(dead: torch.Tensor) -> int:
    """Dead groups that are padding: whole rows and columns at the end, less than half of all."""
    rows, columns = _trailing(dead.all(1)), _trailing(dead.all(0))
    if 2 * rows > dead.shape[0] or 2 * columns > dead.shape[1]:
        return 0
    return rows * dead.shape[1] + columns * (dead.shape[0] - rows)


def _trailing(flags: torch.Tensor) -> int:
    """Length of the run of true values at the end."""
    false = (~flags).nonzero()
    return len(flags) - (int(false[-1]) + 1 if len(false) else 0)
