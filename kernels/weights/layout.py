"""Checkpoint values to packed weights (`PackedWeight`) and back, a few row tiles at a time.

Chunks keep the temporaries small beside the weight, however big the matrix is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from isobit.errors import InputError

from ..native import TILE
from .lines import WORD_DTYPE, by_column, by_run, line_columns, line_words
from .memory import streamed
from .placement import Placement, place
from .stored_codes import StoredCodes
from .tiles import code_tiles, dense_tiles
from .weight import DATA_DTYPE, LINE_K, MIDDLE, WORD_SHAPE, PackedWeight, bad

__all__ = [
    "TILE",
    "PackedWeight",
    "StoredCodes",
    "embedding_rows",
    "pack_dense",
    "pack_quantized",
    "pack_rows",
    "pack_stored",
    "unpack",
]

CHUNK_ELEMENTS = 1 << 18  # temporaries stay in the L2 cache: four times faster than 1 << 23


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
    if codes.dim() != 2 or codes.dtype != torch.uint8:
        raise bad("codes", f"{codes.dtype} {tuple(codes.shape)}", "uint8 [N, K]")
    k = codes.shape[1]
    most = 2**bits - 1
    if codes.numel() and int(codes.max()) > most:
        raise InputError(
            "E-KERNEL-CODE", f"a code is {int(codes.max())}; {bits} bits end at {most}"
        )

    def tiles(kind: str, placement: Placement, _: torch.Tensor | None) -> torch.Tensor:
        fill = MIDDLE[kind]
        pad_codes = None if zeros is None else zeros[:, placement.run_of[placement.padding]]

        def chunk(rows: slice) -> torch.Tensor:
            part = codes[rows]
            if placement.identity:
                return part
            part = part[:, placement.source.clamp(min=0)] if k else part
            part[:, placement.padding] = (
                fill if pad_codes is None else pad_codes[rows].clamp(max=most)
            )
            return part

        return _fill(kind, codes.shape[0], len(placement.source), chunk, fill)

    return _quantized(
        (codes.shape[0], k), scales, zeros, bits, runs, segments, order, activation, input_scale,
        tiles,
    )  # fmt: skip


def pack_stored(
    stored: StoredCodes,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    *,
    k: int,
    runs: Sequence[tuple[int, int]],
    segments: Sequence[int],
    order: torch.Tensor | None = None,
    activation: str = "float",
    input_scale: float | None = None,
) -> PackedWeight:
    """Packs codes straight from the words of a checkpoint, read a part at a time.

    The weight is `[N, k]` with the N of `scales`; what `stored` lacks of it is padding, equal to
    the zero point of its run. Everything else is as in pack_quantized.
    """

    def tiles(kind: str, placement: Placement, zeros: torch.Tensor | None) -> torch.Tensor:
        return code_tiles(stored, kind, scales.shape[0], placement, zeros)

    return _quantized(
        (scales.shape[0], k), scales, zeros, stored.bits, runs, segments, order, activation,
        input_scale, tiles,
    )  # fmt: skip


Tiles = Callable[[str, Placement, torch.Tensor | None], torch.Tensor]
"""Makes the data of a weight from its kind, its placement and its zeros `[tiles, R, 64]`."""


def _quantized(
    shape: tuple[int, int],
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    runs: Sequence[tuple[int, int]],
    segments: Sequence[int],
    order: torch.Tensor | None,
    activation: str,
    input_scale: float | None,
    tiles: Tiles,
) -> PackedWeight:
    kind = {4: "int4", 8: "int8"}.get(bits)
    if kind is None:
        raise bad("bits", bits, "4 or 8")
    n, k = shape
    for name, table in (("scales", scales), ("zeros", zeros)):
        if table is not None and table.shape != (n, len(runs)):
            raise bad(name, tuple(table.shape), (n, len(runs)))
    if scales.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise bad("the dtype of scales", scales.dtype, "float32, float16 or bfloat16")
    if order is not None:
        _check_order(order, k)
    if bits == 4 and zeros is not None and zeros.numel() and int(zeros.max()) > 16:
        raise InputError("E-KERNEL-CODE", f"a zero point is {int(zeros.max())}; 4 bits end at 16")
    placement = place(runs, k, LINE_K[kind], order)
    table = None if zeros is None else by_run(zeros, MIDDLE[kind])
    return PackedWeight(
        kind=kind,
        n=n,
        k=k,
        data=tiles(kind, placement, table),
        scales=by_run(scales, 1),
        zeros=table,
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
    if values.dim() != 2:
        raise bad("a dense weight", tuple(values.shape), "[N, K]")
    n, k = values.shape
    return pack_rows(lambda rows: values[rows], values.dtype, (n, k), segments=segments)


def pack_rows(
    read: Callable[[slice], torch.Tensor],
    dtype: torch.dtype,
    shape: tuple[int, int],
    *,
    segments: Sequence[int],
) -> PackedWeight:
    """Packs a dense weight `[N, K]` of which `read` gives rows, each once and in order.

    Raises InputError E-KERNEL-SHAPE.
    """
    kinds = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
    kind = kinds.get(dtype)
    if kind is None:
        raise bad("the dtype of a dense weight", dtype, "bfloat16, float16 or float32")
    n, k = shape
    pairs = list(itertools.pairwise(segments))
    if not segments or segments[0] != 0 or segments[-1] != k or any(a > b for a, b in pairs):
        raise bad("segments", list(segments), f"ascending from 0 to {k}")
    placement = place([pair for pair in pairs if pair[0] < pair[1]], k, LINE_K[kind])

    def chunk(rows: slice) -> torch.Tensor:
        part = read(rows)
        if placement.identity:
            return part
        part = part[:, placement.source.clamp(min=0)]
        part[:, placement.padding] = 0
        return part

    if k * dtype.itemsize % 4:
        data = _fill(kind, n, len(placement.source), chunk, 0)
    else:
        data = dense_tiles(dtype, n, placement, read)
    filled = torch.tensor([0] + [int(a < b) for a, b in pairs])
    return PackedWeight(
        kind=kind,
        n=n,
        k=k,
        data=data,
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
        part = line_columns(weight.kind, weight.data[tiles], weight.packed_k)[
            : rows.stop - rows.start
        ]
        if weight.gather is None:
            out[rows] = part
        else:
            real = (weight.gather >= 0).nonzero().flatten()
            out[rows, weight.gather[real].long()] = part[:, real]
    scales, zeros = (
        None if table is None else by_column(table)[: weight.n]
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
    data = streamed(shape, WORD_DTYPE[kind])
    for rows, tiles in _chunks(n, packed_k):
        part = chunk(rows)
        missing = (tiles.stop - tiles.start) * TILE - len(part)
        if missing:
            part = torch.cat([part, part.new_full((missing, packed_k), fill)])
        part = part.contiguous()
        if part.storage_offset() % 8:  # a view as wider words must begin on one
            part = part.clone()
        words = line_words(kind, part)
        data[tiles] = words.reshape(-1, TILE, words.shape[1]).transpose(1, 2)
    return data.view(DATA_DTYPE[kind]).reshape(*shape, *WORD_SHAPE[kind])
