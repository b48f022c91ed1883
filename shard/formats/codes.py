"""Integer codes: their slice of a weight, and packing them into 32-bit words."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class QuantizedSlice:
    """A rectangle of a quantized weight, before it is laid out for a kernel.

    `codes` uint8 [n, k], unsigned: value = scale * (code - zero). `scales` [n, g] in the
    checkpoint's dtype; `zeros` uint8 [n, g], None when symmetric (8 at 4 bits, 128 at 8). The first
    column of `scales` belongs to group `first_group` of the whole weight.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    first_group: int


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack uint8 codes [N, K] along K into int32 words [N, ceil(K*bits/32)], low bits first.

    The tail of the last word is filled with raw 0.
    """
    n, k = codes.shape
    per_word = 32 // bits
    padded = torch.zeros((n, -(-k // per_word) * per_word), dtype=torch.int64)
    padded[:, :k] = codes
    shifts = torch.arange(0, 32, bits)
    words = (padded.view(n, -(-k // per_word), per_word) << shifts).sum(dim=2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Inverse of pack_words: int32 [N, W] -> uint8 [N, W*32/bits], the tail included."""
    if bits == 8:
        return words.contiguous().view(torch.uint8)
    data = words.contiguous().view(torch.uint8)
    codes = torch.stack((data & 0xF, data >> 4), dim=2)
    return codes.view(words.shape[0], words.shape[1] * 8)
