"""Integer codes as they lie in the file: how often each occurs, and groups where all are one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..formats.awq import NIBBLE_OF_COLUMN
from ..formats.scheme import WeightScheme
from .quantized import Packing


class ByteHistogram:
    """Counts bytes: 256 bins, one pass, no wider copy of the data."""

    def __init__(self) -> None:
        self.counts = torch.zeros(256, dtype=torch.int64)

    def add(self, piece: torch.Tensor) -> None:
        self.counts += torch.bincount(piece, minlength=256)

    def codes(self, bits: int, signed: bool) -> torch.Tensor:
        """How often each code occurs; signed bytes are codes with their top bit flipped."""
        if bits == 8:
            return self.counts[torch.arange(256) ^ 128] if signed else self.counts
        nibbles = self.counts.view(16, 16)
        return nibbles.sum(0) + nibbles.sum(1)


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The input features of each group: `order[starts[g] : starts[g] + counts[g]]`."""

    order: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor
    consecutive: bool

    def members(self, position: int) -> torch.Tensor:
        """The feature at a position of each group; its last one where the group is shorter."""
        return self.order[self.starts + (self.counts - 1).clamp(max=position)]


def grouping(k: int, scheme: WeightScheme, g_idx: torch.Tensor | None) -> Grouping:
    """Groups from g_idx, whose values must be in range, or consecutive ones. None is empty."""
    groups = scheme.groups(k)
    index = torch.arange(k) // scheme.group_width(k) if g_idx is None else g_idx.long()
    counts = torch.bincount(index, minlength=groups)
    return Grouping(
        order=index.argsort(stable=True),
        starts=counts.cumsum(0) - counts,
        counts=counts,
        consecutive=g_idx is None,
    )


@dataclass(frozen=True, kw_only=True)
class CodeMatrix:
    """The codes of a weight [n, k], unsigned, read in place from the words of the file."""

    words: torch.Tensor
    n: int
    k: int
    bits: int
    packing: Packing

    @property
    def per_word(self) -> int:
        return 32 // self.bits

    def columns(self, features: torch.Tensor) -> torch.Tensor:
        """Codes [n, features] of a few input features."""
        if self.packing == "bytes":
            return self.words[:, features].view(torch.uint8).int() ^ 128
        if self.packing == "awq":
            words = self.words[features]
            shifts = self.bits * torch.tensor(NIBBLE_OF_COLUMN, dtype=torch.int32)
            codes = (words[:, :, None] >> shifts) & 15
            return codes.view(len(features), -1)[:, : self.n].T
        shifts = (self.bits * (features % self.per_word)).int()
        return (self._words_of(features) >> shifts) & (1 << self.bits) - 1

    def at(self, rows: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Codes of some places, rows and features one to one."""
        if self.packing == "bytes":
            return self.words[rows, features].view(torch.uint8).int() ^ 128
        p, where = self.per_word, features
        if self.packing == "along k":
            words = self.words[rows, features // p]
        elif self.packing == "rows of k":
            words = self.words[features // p, rows]
        else:
            words = self.words[features, rows // p]
            where = torch.tensor(NIBBLE_OF_COLUMN)[rows % p]
        return (words >> (self.bits * (where % p)).int()) & (1 << self.bits) - 1

    def tail(self) -> torch.Tensor:
        """How often each code occurs in the filler of last words, beyond n or k."""
        length = self.n if self.packing == "awq" else self.k
        positions = torch.arange(length % self.per_word, self.per_word)
        if self.packing in ("bytes", "nf4") or length % self.per_word == 0:
            return torch.zeros(1 << self.bits, dtype=torch.int64)
        last = self.words[-1] if self.packing == "rows of k" else self.words[:, -1]
        if self.packing == "awq":
            positions = torch.tensor(NIBBLE_OF_COLUMN)[positions]
        codes = (last[:, None] >> (self.bits * positions).int()) & (1 << self.bits) - 1
        return torch.bincount(codes.flatten(), minlength=1 << self.bits)

    def constant_groups(self, groups: Grouping) -> torch.Tensor:
        """The code that all of a group [n, g] have, -1 where they vary; int16.

        Nearly every group falls out at its first word or its first two codes, so little of the
        data is looked at a second time.
        """
        shape, start = (self.n, len(groups.counts)), 1
        first = self.columns(groups.members(0))
        if self._word_aligned(groups):
            start = self.per_word
            ones = sum(1 << (self.bits * i) for i in range(self.per_word))
            alike = self._words_of(groups.members(0)) == first * ones
        else:
            alike = first == self.columns(groups.members(1))
        rows, which = (alike & (groups.counts > 0)).nonzero(as_tuple=True)
        codes = first[rows, which]
        for position in range(start, int(groups.counts.max())):
            if not len(rows):
                break
            same = self.at(rows, groups.members(position)[which]) == codes
            rows, which, codes = rows[same], which[same], codes[same]
        constant = torch.full(shape, -1, dtype=torch.int16)
        constant[rows, which] = codes.to(torch.int16)
        return constant

    def _word_aligned(self, groups: Grouping) -> bool:
        """Whether the first word of each group belongs to it alone."""
        if self.packing not in ("along k", "rows of k") or not groups.consecutive:
            return False
        p = self.per_word
        return bool((groups.starts % p == 0).all() and (groups.counts >= p).all())

    def _words_of(self, features: torch.Tensor) -> torch.Tensor:
        """Words [n, features] that hold some input features; evenly spaced ones are not copied."""
        index = features // self.per_word
        steps = index.diff()
        if len(index) > 1 and bool((steps == steps[0]).all()) and int(steps[0]) > 0:
            along = slice(int(index[0]), int(index[-1]) + 1, int(steps[0]))
        else:
            along = index
        return self.words[along].T if self.packing == "rows of k" else self.words[:, along]
