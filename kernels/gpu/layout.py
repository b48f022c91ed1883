"""Packed weights of the CPU's form (`PackedWeight`) to the form of the GPU (`GpuWeight`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from isobit.errors import InputError

from ..native import TILE as LINE_TILE
from ..weights.lines import by_column, line_columns
from ..weights.weight import MIDDLE, PackedWeight
from .unpack import UNITS
from .weight import CHUNK, TILE, GpuWeight

PART_ELEMENTS = 1 << 22
"""Temporaries while a weight is laid out stay this small, times 8 bytes."""


def to_gpu(weight: PackedWeight, device: torch.device | str) -> GpuWeight:
    """The same weight on `device`. Raises InputError E-KERNEL-KIND for float32 weights."""
    if weight.kind == "float32":
        raise InputError(
            "E-KERNEL-KIND",
            "the CUDA kernels multiply int4, int8, bfloat16 and float16 weights, not float32; "
            "run the model in bfloat16 or float16 (--dtype)",
        )
    source = _source(weight)
    gather = source.activations(weight)
    identity = torch.equal(gather, torch.arange(weight.k, dtype=torch.int32))
    common = {
        "kind": weight.kind,
        "n": weight.n,
        "k": weight.k,
        "packed_k": len(source.position),
        "offsets": source.offsets.to(device),
        "gather": None if identity else gather.to(device),
        "unit": source.unit,
        "run_chunks": None if source.run_chunks is None else source.run_chunks.to(device),
    }
    if weight.kind not in MIDDLE:
        return GpuWeight(data=_rows(weight, source, device), **common)
    if weight.activation == "int8":
        return GpuWeight(
            data=_rows(weight, source, device),
            column_scales=_column_scales(weight).to(device),
            activation="int8",
            input_scale=weight.input_scale,
            **common,
        )
    assert weight.scales is not None
    return GpuWeight(
        data=_words(weight, source, device),
        tables=_tables(weight, source).to(device),
        scale_dtype=weight.scales.dtype,
        zeros=weight.zeros is not None,
        **common,
    )


@dataclass(frozen=True)
class _Source:
    """Where every packed k comes from: `position` int64 `[Kp]` in the CPU's packed k, and `run`
    int64 `[runs here]` the run there; -1 for padding."""

    position: torch.Tensor
    run: torch.Tensor
    unit: int
    offsets: torch.Tensor
    run_chunks: torch.Tensor | None

    def activations(self, weight: PackedWeight) -> torch.Tensor:
        """int32 `[Kp]`, -1 for padding."""
        found = self.position.clone()
        if weight.gather is not None and len(weight.gather):
            found = weight.gather.long()[self.position.clamp(min=0)]
        return torch.where(self.position < 0, -1, found).to(torch.int32)


def _source(weight: PackedWeight) -> _Source:
    begins = weight.run_offsets[:-1].long()
    lengths = weight.run_offsets.diff().long()
    if weight.gather is not None:  # what fills up the CPU's lines is not needed here
        real = torch.cat([torch.zeros(1, dtype=torch.int64), (weight.gather >= 0).cumsum(0)])
        lengths = real[weight.run_offsets.long()].diff()
    longest = int(lengths.max()) if len(lengths) else 0
    by_segment = weight.kind not in MIDDLE or weight.activation == "int8"
    long = by_segment or longest > CHUNK
    least = 32 if weight.kind == "int4" else 64
    unit = CHUNK if long else min(u for u in UNITS if u >= max(longest, least))
    position, run, segments, run_ends = [], [], [0], [0]
    for first, last in zip(*_pairs(weight.segment_offsets), strict=True):
        for r in range(first, last):
            size = -(-int(lengths[r]) // unit) * unit
            index = torch.full((size,), -1)
            index[: int(lengths[r])] = int(begins[r]) + torch.arange(int(lengths[r]))
            position.append(index)
            run.append(r)
            run_ends.append(run_ends[-1] + size // CHUNK)
        if not long:
            filler = -len(run) % (CHUNK // unit)
            position.append(torch.full((filler * unit,), -1))
            run += [-1] * filler
        by_runs = long and not by_segment
        segments.append(len(run) if by_runs else sum(map(len, position)) // CHUNK)
    return _Source(
        position=torch.cat(position) if position else torch.empty(0, dtype=torch.int64),
        run=torch.tensor(run, dtype=torch.int64),
        unit=unit,
        offsets=torch.tensor(segments, dtype=torch.int32),
        run_chunks=torch.tensor(run_ends, dtype=torch.int32) if long and not by_segment else None,
    )


def _pairs(offsets: torch.Tensor) -> tuple[list[int], list[int]]:
    return offsets[:-1].tolist(), offsets[1:].tolist()


def _padded(n: int) -> int:
    return -(-n // (2 * TILE)) * 2 * TILE


def _parts(weight: PackedWeight, source: _Source) -> Iterator[tuple[slice, torch.Tensor]]:
    """Codes or values of some columns at a time, `[columns, Kp]`; 0 where there is padding."""
    width = max(1, len(source.position), weight.packed_k)
    step = max(1, PART_ELEMENTS // (2 * TILE * width)) * 2 * TILE
    for begin in range(0, weight.n, step):
        end = min(begin + step, weight.n)
        tiles = slice(begin // LINE_TILE, -(-end // LINE_TILE))
        columns = line_columns(weight.kind, weight.data[tiles], weight.packed_k)[: end - begin]
        if weight.packed_k:
            columns = columns[:, source.position.clamp(min=0)]
        yield slice(begin, end), columns


def _words(weight: PackedWeight, source: _Source, device: torch.device | str) -> torch.Tensor:
    bits = 4 if weight.kind == "int4" else 8
    planes, words = 32 // bits, 4 * bits
    chunks, middle = len(source.position) // CHUNK, MIDDLE[weight.kind]
    run_of = _run_of(source)
    padding = source.position < 0
    zeros = None if weight.zeros is None else by_column(weight.zeros)
    shifts = (torch.arange(planes) * bits).view(1, 1, planes, 1)
    data = torch.empty(_padded(weight.n) // TILE, chunks, TILE, words, dtype=torch.int32)
    for rows, columns in _parts(weight, source):
        codes = torch.full((_padded(len(columns)), chunks * CHUNK), middle, dtype=torch.int64)
        codes[: len(columns)] = columns
        fill = torch.full((len(columns), len(run_of)), middle)
        if zeros is not None:
            fill = torch.where(run_of < 0, middle, zeros[rows][:, run_of.clamp(min=0)].long())
        top = 2**bits - 1
        codes[: len(columns), padding] = fill[:, padding].clamp(max=top)
        packed = (codes.view(-1, chunks, planes, words) << shifts).sum(2)
        tiles = packed.to(torch.int32).view(-1, TILE, chunks, words).transpose(1, 2)
        data[rows.start // TILE : rows.start // TILE + len(tiles)] = tiles
    return data.to(device)


def _run_of(source: _Source) -> torch.Tensor:
    """The CPU's run of every packed k, -1 for none."""
    if source.run_chunks is None:
        return source.run.repeat_interleave(source.unit)
    return source.run.repeat_interleave(source.run_chunks.diff().long() * CHUNK)


def _rows(weight: PackedWeight, source: _Source, device: torch.device | str) -> torch.Tensor:
    dtype = torch.int8 if weight.kind in MIDDLE else weight.data.dtype
    data = torch.zeros(_padded(weight.n), len(source.position), dtype=dtype)
    for rows, columns in _parts(weight, source):
        part = columns
        if weight.kind in MIDDLE:
            part = (columns.to(torch.int16) - MIDDLE[weight.kind]).to(torch.int8)
        data[rows] = torch.where(source.position < 0, 0, part)
    return data.to(device)


def _tables(weight: PackedWeight, source: _Source) -> torch.Tensor:
    assert weight.scales is not None
    wide = weight.scales.dtype == torch.float32
    scales = by_column(weight.scales)[: weight.n]
    bits = scales.view(torch.int32) if wide else scales.view(torch.int16).to(torch.int32) & 0xFFFF
    one = torch.ones(1, dtype=weight.scales.dtype)
    unity = int(one.view(torch.int32 if wide else torch.int16))
    zeros = torch.full_like(bits, MIDDLE[weight.kind])
    if weight.zeros is not None:
        zeros = by_column(weight.zeros)[: weight.n].to(torch.int32)
    rows, runs, real = _padded(weight.n), source.run.clamp(min=0), source.run >= 0
    fields = torch.full((2, rows, len(runs)), MIDDLE[weight.kind], dtype=torch.int32)
    fields[0] = unity
    if len(runs) and weight.runs:
        fields[0, : weight.n] = torch.where(real, bits[:, runs], unity)
        fields[1, : weight.n] = torch.where(real, zeros[:, runs], MIDDLE[weight.kind])
    if not wide:
        fields = (fields[0] | (fields[1] << 16))[None]
    tiles = fields.view(len(fields), rows // TILE, TILE, len(runs))
    return tiles.permute(1, 3, 0, 2).contiguous()


def _column_scales(weight: PackedWeight) -> torch.Tensor:
    """fp32 `[S, Np]`; 1 where a segment has no run."""
    assert weight.scales is not None
    scales = by_column(weight.scales)[: weight.n].float()
    out = torch.ones(weight.segments, _padded(weight.n))
    for segment, (first, last) in enumerate(zip(*_pairs(weight.segment_offsets), strict=True)):
        if first < last:
            out[segment, : weight.n] = scales[:, first]
    return out
