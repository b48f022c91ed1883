"""Tiles made by the compiled module, from what a reader gives a part at a time.

A part is small enough to stay in the cache between being read and being laid out, and is all that
is held in memory beside the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..native import TILE, native
from .memory import streamed
from .placement import Placement
from .stored_codes import StoredCodes
from .weight import DATA_DTYPE, LINE_K, MIDDLE, WORD_SHAPE

PART_BYTES = 1 << 19


def code_tiles(
    stored: StoredCodes, kind: str, n: int, placement: Placement, zeros: torch.Tensor | None
) -> torch.Tensor:
    """The data of a weight `[n, K]` whose corner is `stored`; the rest is padding.

    `zeros` are those of the packed weight, `[tiles, R, 64]`: padding of a run is its zero point.
    """
    per = LINE_K[kind]
    tiles, lines = -(-n // TILE), len(placement.source) // per
    data = streamed((tiles, lines, TILE), torch.int32)
    rows = torch.full((tiles * TILE,), -1, dtype=torch.int32)
    rows[: len(stored.rows)] = stored.rows
    source = placement.source
    real = (source >= 0) & (source < len(stored.columns))
    columns = torch.full((lines * per,), -1, dtype=torch.int32)
    columns[real] = stored.columns[source[real]].to(torch.int32)
    run_of = placement.run_of[::per].to(torch.int32)
    shifts = torch.tensor([4 * nibble for nibble in stored.nibbles], dtype=torch.int32)
    for part in _parts(stored, rows, columns.view(lines, per)):
        words = stored.read(part.first, part.end).contiguous()
        begin, end = part.lines
        pitch = words.shape[1]
        own_rows, own_columns = rows[part.rows], columns[begin * per : end * per]
        if part.first:
            moved = own_columns if stored.k_first else own_rows
            moved = torch.where(moved < 0, moved, moved - part.first * stored.first_unit)
            own_rows, own_columns = (own_rows, moved) if stored.k_first else (moved, own_columns)
        tile = part.rows.start // TILE
        native().pack_tiles(
            words.data_ptr(),
            1 if stored.k_first else pitch,
            pitch if stored.k_first else 1,
            stored.bits,
            stored.along_k,
            False,
            shifts.data_ptr(),
            own_rows.data_ptr(),
            own_columns.data_ptr(),
            len(own_rows) // TILE,
            end - begin,
            run_of[begin:].data_ptr(),
            0 if zeros is None else zeros[tile:].data_ptr(),
            0 if zeros is None else zeros.shape[1] * TILE,
            MIDDLE[kind],
            data[tile:, begin:].data_ptr(),
            lines * TILE,
        )
    return data.view(DATA_DTYPE[kind]).reshape(tiles, lines, TILE, *WORD_SHAPE[kind])


def dense_tiles(
    dtype: torch.dtype, n: int, placement: Placement, read: Callable[[slice], torch.Tensor]
) -> torch.Tensor:
    """The data of a dense weight; `read` gives rows of it `[rows, K]` in `dtype`.

    Rows are whole words: K is even where elements have 16 bits.
    """
    bits = 8 * dtype.itemsize
    per = 32 // bits
    tiles, lines = -(-n // TILE), len(placement.source) // per
    data = streamed((tiles, lines, TILE), torch.int32)
    columns = placement.source.to(torch.int32)
    pitch = placement.width // per
    step = max(1, PART_BYTES // max(1, TILE * pitch * 4))
    for begin in range(0, tiles if lines else 0, step):
        part = slice(begin * TILE, min((begin + step) * TILE, n))
        words = read(part).contiguous()
        rows = torch.full((-(-len(words) // TILE) * TILE,), -1, dtype=torch.int32)
        rows[: len(words)] = torch.arange(len(words))
        native().pack_tiles(
            words.data_ptr(),
            pitch,
            1,
            bits,
            True,
            dtype == torch.float16,
            0,
            rows.data_ptr(),
            columns.data_ptr(),
            len(rows) // TILE,
            lines,
            0,
            0,
            0,
            0,
            data[begin:].data_ptr(),
            lines * TILE,
        )
    if dtype == torch.bfloat16:
        return data.view(dtype).reshape(tiles, lines, TILE, 2)
    return data.view(dtype).reshape(tiles, lines * per, TILE)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Words `first` to `end` of the first dimension, for some rows and lines of the weight."""

    first: int
    end: int
    rows: slice
    lines: tuple[int, int]


def _parts(stored: StoredCodes, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[_Part]:
    """Cut a weight with `rows` [tiles * 64] and `columns` [lines, per] into parts to be read."""
    lines, per = columns.shape
    if not lines or not len(rows):
        return
    if not stored.k_first:
        pitch = (int(columns.max()) // per + 1) * 4
        tiles = max(1, PART_BYTES // max(1, TILE * pitch))
        step = tiles * TILE if stored.divisible else len(rows)
        count = len(stored.rows)
        for begin in range(0, len(rows), step):
            end = min(begin + step, len(rows))
            first, last = min(begin, count), min(end, count)
            yield _Part(first=first, end=last, rows=slice(begin, end), lines=(0, lines))
        return
    unit = stored.first_unit
    real = columns[columns >= 0]
    step = lines
    if stored.divisible and bool((real.diff() >= 0).all()):
        pitch = (int(rows.max()) // (1 if stored.along_k else per) + 1) * 4
        step = max(1, PART_BYTES // max(1, pitch * per // unit))
    for begin in range(0, lines, step):
        part = columns[begin : begin + step]
        real = part[part >= 0]
        first = int(real.min()) // unit if len(real) else 0
        last = int(real.max()) // unit + 1 if len(real) else 0
        whole = slice(0, len(rows))
        yield _Part(first=first, end=last, rows=whole, lines=(begin, begin + len(part)))
