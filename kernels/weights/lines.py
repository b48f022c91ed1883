"""Elements in rows to the words of lines, tables to tiles, and both back, in plain torch."""

from __future__ import annotations

import torch

from ..native import TILE
from .memory import kept

# A line is copied as 64 words, one a column.
WORD_DTYPE = {
    "int4": torch.int32,
    "int8": torch.int32,
    "bfloat16": torch.int32,
    "float16": torch.float16,
    "float32": torch.float32,
}
NIBBLES = 0x000F000F000F000F


def line_words(kind: str, part: torch.Tensor) -> torch.Tensor:
    """`[rows, Kp]` to words `[rows, lines]`."""
    if kind != "int4":
        return part.view(WORD_DTYPE[kind])
    nibbles = part.view(torch.int64)
    even, odd = nibbles & NIBBLES, (nibbles >> 8) & NIBBLES
    return (_squeeze(even) | (_squeeze(odd) << 16)).to(torch.int32)


def line_columns(kind: str, data: torch.Tensor, packed_k: int) -> torch.Tensor:
    """Lines of some tiles back to `[tiles * 64, Kp]`."""
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


def by_run(table: torch.Tensor, fill: int) -> torch.Tensor:
    """A table `[n, runs]` tile by tile: `[tiles, runs, 64]`, `fill` beyond n."""
    n, runs = table.shape
    tiles = -(-n // TILE)
    whole = table.new_full((tiles * TILE, runs), fill)
    whole[:n] = table
    return kept(whole.view(tiles, TILE, runs).transpose(1, 2))


def by_column(table: torch.Tensor) -> torch.Tensor:
    """A table `[tiles, runs, 64]` back to `[tiles * 64, runs]`."""
    tiles, runs, _ = table.shape
    return table.transpose(1, 2).reshape(tiles * TILE, runs)
