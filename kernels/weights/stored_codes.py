"""Codes as checkpoints store them: several to an int32 word, along either side of the weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class StoredCodes:
    """Unsigned codes `[n, k]` of 4 or 8 bits, read a part at a time.

    The words are an int32 matrix whose first dimension is K when `k_first`, else N. A word holds
    codes that follow each other along K when `along_k` (low bits first), else along N, the one at
    n in the nibble `nibbles[n % 8]`: that is for 4 bits and `k_first` only.

    `rows` int64 `[n]` and `columns` int64 `[k]` say which code of the matrix each one is, counted
    in codes from its first word. Where the first dimension is N, `rows` counts 0, 1, 2...
    `read(begin, end)` gives a part of the first dimension, counted in words or whole rows of words;
    with `divisible` False reading it in parts costs more than all at once.
    """

    bits: int
    k_first: bool
    along_k: bool
    rows: torch.Tensor
    columns: torch.Tensor
    read: Callable[[int, int], torch.Tensor]
    nibbles: tuple[int, ...] = ()
    divisible: bool = True

    @property
    def first_unit(self) -> int:
        """Codes that one step along the first dimension passes."""
        return 32 // self.bits if self.k_first and self.along_k else 1

    def codes(self) -> torch.Tensor:
        """All of it, uint8 `[n, k]`."""
        side = self.columns if self.k_first else self.rows
        length = int(side.max()) // self.first_unit + 1 if len(side) else 0
        words = self.read(0, length)
        if not len(self.rows) or not len(self.columns):
            return torch.empty((len(self.rows), len(self.columns)), dtype=torch.uint8)
        if self.along_k:
            by_row = unpack_words(words.T if self.k_first else words, self.bits)
        else:
            found = unpack_words(words, self.bits).view(len(words), -1, 32 // self.bits)
            by_row = found[:, :, list(self.nibbles)].reshape(len(words), -1).T
        if not _counts(self.columns, by_row.shape[1]):
            by_row = by_row[:, self.columns]
        return by_row if _counts(self.rows, by_row.shape[0]) else by_row[self.rows]


def _counts(places: torch.Tensor, length: int) -> bool:
    return len(places) == length and torch.equal(places, torch.arange(length))


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 [N, W*32/bits] of int32 words [N, W], low bits first, the tail included."""
    if not words.numel():
        return torch.empty((words.shape[0], words.shape[1] * 32 // bits), dtype=torch.uint8)
    # contiguous() keeps the strides of a transposed single column, and view then refuses them.
    words = words.clone(memory_format=torch.contiguous_format)
    data = words.view(torch.uint8)
    if bits == 8:
        return data
    codes = torch.stack((data & 0xF, data >> 4), dim=2)
    return codes.view(words.shape[0], words.shape[1] * 8)
