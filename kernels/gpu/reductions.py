"""What runs for the greedy choice and for digests."""

from __future__ import annotations

import torch

from .jit.reductions import FACTORS, GOLDEN_RATIO, digest_words, greatest_rows
from .launch import Launch, ceil_div

BLOCK_GREATEST = 4096
BLOCK_DIGEST = 4096
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
MASK = (1 << 64) - 1


def greatest(x: torch.Tensor, out: torch.Tensor) -> Launch:
    """As ops.greatest; out int64 `[M]`."""
    arguments = {"x": x, "out": out, "width": x.shape[1], "BLOCK": BLOCK_GREATEST}
    return Launch(kernel=greatest_rows, grid=(x.shape[0],), arguments=arguments, warps=8)


def digest_blocks(tensor: torch.Tensor) -> int:
    """How many sums a digest of the tensor has."""
    return ceil_div(tensor.numel(), BLOCK_DIGEST)


def digest(tensor: torch.Tensor, seed: int, sums: torch.Tensor) -> Launch:
    """The sums of blocks of a contiguous tensor, int64 `[digest_blocks]`."""
    arguments = {
        "words": tensor.view(WORDS[tensor.element_size()]),
        "sums": sums,
        "size": tensor.numel(),
        "seed": seed,
        "BLOCK": BLOCK_DIGEST,
    }
    return Launch(kernel=digest_words, grid=sums.shape, arguments=arguments)


def digest_value(total: int, nbytes: int, seed: int) -> int:
    """64 bits from the sum of all blocks, the size and the seed."""
    state = (total ^ ((nbytes + 1) * GOLDEN_RATIO + seed)) & MASK
    state = (state ^ (state >> 30)) * FACTORS[0] & MASK
    state = (state ^ (state >> 27)) * FACTORS[1] & MASK
    return state ^ (state >> 31)
