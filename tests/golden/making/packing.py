"""Eight 4-bit codes to an int32, as GPTQ and AWQ order them."""

from __future__ import annotations

import torch
from torch import Tensor

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word holds column 8c + AWQ_ORDER[i]


def pack_nibbles(codes: Tensor) -> Tensor:
    """int64 [rows, columns] of 0-15 to int32 [rows, columns / 8], low bits first."""
    words = codes.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)
    return words.sum(2).to(torch.int32)


def pack_awq(codes: Tensor) -> Tensor:
    return pack_nibbles(codes.unflatten(1, (-1, 8))[:, :, AWQ_ORDER].flatten(1))
