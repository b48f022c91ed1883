"""Checkpoint values to packed weights (`PackedWeight`) and back, a few row tiles at a time.

Chunks keep the temporaries small beside the weight, however big the matrix is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from .errors import InputError
from .weight import DATA_DTYPE, LINE_K, MIDDLE, TILE, WORD_SHAPE, PackedWeight, bad

__all__ = ["TILE", "PackedWeight", "embedding_rows", "pack_dense", "pack_quantized", "unpack"]

# A line is copied as 16 words, one a column.
WORD_DTYPE = {
    "int4": torch.int32,
    "int8": torch.int32,
    "bfloat16": torch.int32,
    "float16": torch.float16,
    "float32": torch.float32,
}
CHUNK_ELEMENTS = 1 << 18  # temporaries stay in the L2 cache: four times faster than 1 << 23
NIBBLES = 0x000F000F000F000F


@dataclass(frozen=True)
class Placement:
    """Where each packed k comes from: `source` int64 `[Kp]` activation indices (-1 = padding)."""

    run_offsets: torch.Tensor
    run_of: torch.Tensor
    source: torch.Tensor
    width: int

    @cached_property
    def identity(self) -> bool:
        return torch.equal(self.source, torch.arange(self.width))

    @cached_property
    def padding(self) -> torch.Tensor:
        return (self.source < 0).nonzero().flatten()


def place(
    runs: Sequence[tuple[int, int]], width: int, line: int, order: torch.Tensor | None = None
) -> Placement:
    """Lays runs (begin, end) out one after the other, each from the start of a line."""
    positions = width if order is None else len(order)
    previous = 0
    for begin, end in runs:
        if not previous <= begin <= end <= positions:
            raise bad(
                f"run ({begin}, {end})", "overlapping or outside", f"ascending in {positions}"
            )
        previous = end
    begins = torch.tensor([begin for begin, _ in runs], dtype=torch.int64)
    lengths = torch.tensor([end - begin for begin, end in runs], dtype=torch.int64)
    padded = (lengths + line - 1) // line * line
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), padded.cumsum(0)])
    run_of = torch.repeat_interleave(torch.arange(len(runs)), padded)
    within = torch.arange(len(run_of)) - offsets[run_of]
    logical = begins[run_of] + within
    inside = within < lengths[run_of]
    source = logical if order is None else order[torch.where(inside, logical, 0)]
    return Placement(offsets.to(torch.int32), run_of, torch.where(inside, source, -1), width)


def pack_quantized(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    bits: int,
    runs: Sequence[tuple[int, int]],
    segments: Sequence[int],
    order: torch.Tensor | None = None,
    activation: str = "float",
    input_scale: float | None = None,
) -> PackedWeight:
    """Packs unsigned codes; the value of an element is (code - zero) * scale.

    codes: uint8 `[N, K]`, columns in the order of the activations. scales: `[N, R]`, kept in their
    dtype. zeros: uint8 `[N, R]`, up to 16 for 4 bits (old GPTQ files hold 15 + 1), or None.
    runs: R pairs (begin, end), ascending, in K or in positions of `order`. segments: S+1 offsets in
    runs. order: int64 `[K']`, distinct activation indices (act-order); activations that no run
    names are ignored. activation, input_scale: see PackedWeight. Raises InputError E-KERNEL-SHAPE
    or E-KERNEL-CODE.
    """
    kind = {4: "int4", 8: "int8"}.get(bits)
    if kind is None:
        raise bad("bits", bits, "4 or 8")
    if codes.dim() != 2 or codes.dtype != torch.uint8:
        raise bad("codes", f"{codes.dtype} {tuple(codes.shape)}", "uint8 [N, K]")
    n, k = codes.shape
    for name, table in (("scales", scales), ("zeros", zeros)):
        if table is not None and table.shape != (n, len(runs)):
            raise bad(name, tuple(table.shape), (n, len(runs)))
    if scales.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise bad("the dtype of scales", scales.dtype, "float32, float16 or bfloat16")
    if order is not None:
        _check_order(order, k)
    _check_codes(codes, zeros, bits)

    placement = place(runs, k, LINE_K[kind], order)
    fill = MIDDLE[kind]
    pad_codes = None if zeros is None else zeros[:, placement.run_of[placement.padding]]

    def chunk(rows: slice) -> torch.Tensor:
        part = codes[rows]
        if placement.identity:
            return part
        part = part[:, placement.source.clamp(min=0)] if k else part
        part[:, placement.padding] = (
            fill if pad_codes is None else pad_codes[rows].clamp(max=2**bits - 1)
        )
        return part

    return PackedWeight(
        kind=kind,
        n=n,
        k=k,
        data=_fill(kind, n, len(placement.source), chunk, fill),
        scales=_by_run(scales, 1),
        zeros=None if zeros is None else _by_run(zeros, fill),
        run_offsets=placement.run_offsets,
        segment_offsets=torch.tensor(segments, dtype=torch.int32),
        gather=None if placement.identity else placement.source.to(torch.int32),
        activation=activation,
        input_scale=input_scale,
    )


def pack_dense(values: torch.Tensor, *, segments: Sequence[int]) -> PackedWeight:
    """Packs values `[N, K]` in bf16, fp16 or fp32. segments: S+1 offsets in K, from 0 to K.

    Raises InputError E-KERNEL-SHAPE.
    """
    kinds = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
    kind = kinds.get(values.dtype)
    if kind is None or values.dim() != 2:
        found = f"{values.dtype} {tuple(values.shape)}"
        raise bad("a dense weight", found, "[N, K] in bfloat16, float16 or float32")
    n, k = values.shape
    pairs = list(itertools.pairwise(segments))
    if not segments or segments[0] != 0 or segments[-1] != k or any(a > b for a, b in pairs):
        raise bad("segments", list(segments), f"ascending from 0 to {k}")
    placement = place([pair for pair in pairs if pair[0] < pair[1]], k, LINE_K[kind])

    def chunk(rows: slice) -> torch.Tensor:
        if placement.identity:
            return values[rows]
        part = values[rows][:, placement.source.clamp(min=0)]
        part[:, placement.padding] = 0
        return part

    filled = torch.tensor([0] + [int(a < b) for a, b in pairs])
    return PackedWeight(
        kind=kind,
        n=n,
        k=k,
        data=_fill(kind, n, len(placement.source), chunk, 0),
        scales=None,
        zeros=None,
        run_offsets=placement.run_offsets,
        segment_offsets=filled.cumsum(0).to(torch.int32),
        gather=None if placement.identity else placement.source.to(torch.int32),
    )


def unpack(
    weight: PackedWeight,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """What was packed: codes or values `[N, K]`, scales `[N, R]` and zeros `[N, R]`.

    Columns that no run names come back as the middle code (8 or 128), or 0.
    """
    dtype = torch.uint8 if weight.kind in MIDDLE else weight.data.dtype
    out = torch.full((weight.n, weight.k), MIDDLE.get(weight.kind, 0), dtype=dtype)
    for rows, tiles in _chunks(weight.n, weight.packed_k):
        part = _columns(weight.kind, weight.data[tiles], weight.packed_k)[: rows.stop - rows.start]
        if weight.gather is None:
            out[rows] = part
        else:
            real = (weight.gather >= 0).nonzero().flatten()
            out[rows, weight.gather[real].long()] = part[:, real]
    scales, zeros = (
        None if table is None else _by_column(table)[: weight.n]
        for table in (weight.scales, weight.zeros)
    )
    return out, scales, zeros


def embedding_rows(weight: PackedWeight, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a dense weight straight from its tiles: ids int64 `[T]` give `[T, K]`.

    A tied embedding needs no second copy. Raises InputError E-KERNEL-KIND or E-KERNEL-INDEX.
    """
    if weight.kind in MIDDLE:
        raise InputError("E-KERNEL-KIND", f"an embedding must be dense, this one is {weight.kind}")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < weight.n:
        raise InputError(
            "E-KERNEL-INDEX",
            f"token ids reach from {int(ids.min())} to {int(ids.max())}; "
            f"the table has {weight.n} rows",
        )
    rows = weight.data[ids // TILE, :, ids % TILE].reshape(len(ids), weight.packed_k)
    if weight.gather is None:
        return rows
    real = (weight.gather >= 0).nonzero().flatten()
    out = rows.new_zeros(len(ids), weight.k)
    out[:, weight.gather[real].long()] = rows[:, real]
    return out


def _check_order(order: torch.Tensor, k: int) -> None:
    if order.dtype != torch.int64 or order.dim() != 1:
        raise bad("order", f"{order.dtype} {tuple(order.shape)}", "int64 with one dimension")
    inside = bool(((order >= 0) & (order < k)).all())
    if not inside or len(order.unique()) != len(order):
        raise bad("order", "repeating or out of range", f"distinct indices below {k}")


def _check_codes(codes: torch.Tensor, zeros: torch.Tensor | None, bits: int) -> None:
    most = 2**bits - 1
    if codes.numel() and int(codes.max()) > most:
        raise InputError(
            "E-KERNEL-CODE", f"a code is {int(codes.max())}; {bits} bits end at {most}"
        )
    if bits == 4 and zeros is not None and zeros.numel() and int(zeros.max()) > 16:
        raise InputError("E-KERNEL-CODE", f"a zero point is {int(zeros.max())}; 4 bits end at 16")


def _by_run(table: torch.Tensor, fill: int) -> torch.Tensor:
    n, runs = table.shape
    tiles = -(-n // TILE)
    whole = table.new_full((tiles * TILE, runs), fill)
    whole[:n] = table
    return whole.view(tiles, TILE, runs).transpose(1, 2).contiguous()


def _by_column(table: torch.Tensor) -> torch.Tensor:
    tiles, runs, _ = table.shape
    return table.transpose(1, 2).reshape(tiles * TILE, runs)


def _chunks(n: int, packed_k: int) -> Iterator[tuple[slice, slice]]:
    if packed_k == 0:
        return
    tiles = -(-n // TILE)
    step = max(1, CHUNK_ELEMENTS // (packed_k * TILE))
    for tile in range(0, tiles, step):
        end = min(tile + step, tiles)
        yield slice(tile * TILE, min(end * TILE, n)), slice(tile, end)


def _fill(
    kind: str, n: int, packed_k: int, chunk: Callable[[slice], torch.Tensor], fill: int
) -> torch.Tensor:
    shape = (-(-n // TILE), packed_k // LINE_K[kind], TILE)
    data = torch.empty(shape, dtype=WORD_DTYPE[kind])
    for rows, tiles in _chunks(n, packed_k):
        part = chunk(rows)
        missing = (tiles.stop - tiles.start) * TILE - len(part)
        if missing:
            part = torch.cat([part, part.new_full((missing, packed_k), fill)])
        part = part.contiguous()
        if part.storage_offset() % 8:  # a view as wider words must begin on one
            part = part.clone()
        words = _words(kind, part)
        data[tiles] = words.reshape(-1, TILE, words.shape[1]).transpose(1, 2)
    return data.view(DATA_DTYPE[kind]).reshape(*shape, *WORD_SHAPE[kind])


def _words(kind: str, part: torch.Tensor) -> torch.Tensor:
    """`[rows, Kp]` to words `[rows, lines]`."""
    if kind != "int4":
        return part.view(WORD_DTYPE[kind])
    nibbles = part.view(torch.int64)
    even, odd = nibbles & NIBBLES, (nibbles >> 8) & NIBBLES
    return (_squeeze(even) | (_squeeze(odd) << 16)).to(torch.int32)


def _columns(kind: str, data: torch.Tensor, packed_k: int) -> torch.Tensor:
    """Lines of some tiles back to `[tiles * 16, Kp]`."""
    columns = data.transpose(1, 2)
    if kind != "int4":
        return columns.reshape(-1, packed_k)
    words = columns.to(torch.int64).contiguous().view(-1, packed_k // 8)
    return (_spread(words & 0xFFFF) | (_spread((words >> 16) & 0xFFFF) << 8)).view(torch.uint8)


def _squeeze(words: torch.Tensor) -> torch.Tensor:
    """Nibbles at bits 0, 16, 32, 48 to bits 0, 4, 8, 12."""
    return (words | (words >> 12) | (words >> 24) | (words >> 36)) & 0xFFFF


def _spread(words: torch.Tensor) -> torch.Tensor:
    return (words | (words << 12) | (words << 24) | (words << 36)) & NIBBLES
