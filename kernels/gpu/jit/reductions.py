"""What is left of many numbers: the place of the greatest, and sums for a digest of bits."""

from __future__ import annotations

import triton
import triton.language as tl

GOLDEN_RATIO = 0x9E3779B97F4A7C15
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
GOLDEN, FIRST, SECOND = (
    tl.constexpr(GOLDEN_RATIO),
    tl.constexpr(FACTORS[0]),
    tl.constexpr(FACTORS[1]),
)


@triton.jit
def greatest_rows(x, out, width, BLOCK: tl.constexpr):
    """out int64 `[M]`: the first place where a row of fp32 x is greatest; -1 for one with a NaN or
    an infinity."""
    row = tl.program_id(0).to(tl.int64)
    lowest = float("-inf")
    most = tl.zeros([BLOCK], tl.int32)
    top = tl.full([BLOCK], lowest, tl.float32)
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * width + place, mask=place < width, other=0.0)
        most = tl.maximum(most, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        top = tl.maximum(top, tl.where(place < width, value, lowest))
    highest = tl.max(top, 0)
    first = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    for start in range(0, width, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * width + place, mask=place < width, other=lowest)
        first = tl.minimum(first, tl.where(value == highest, place, 0x7FFFFFFF))
    finite = tl.max(most, 0) < 0x7F800000
    tl.store(out + row, tl.where(finite, tl.min(first, 0), -1).to(tl.int64))


@triton.jit(do_not_specialize=["size", "seed"])
def digest_words(words, sums, size, seed, BLOCK: tl.constexpr):
    """sums int64: for each block, the sum modulo 2^64 of its words, each mixed with its place.

    For one place the mix is one to one in the word (the finalizer of splitmix64), so one changed
    word changes the sum; integers may be added in any order.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    number: tl.constexpr = words.dtype.element_ty
    mask: tl.constexpr = (1 << number.primitive_bitwidth) - 1
    word = tl.load(words + place, mask=inside, other=0).to(tl.int64) & mask
    state = word.to(tl.uint64) ^ ((place + 1).to(tl.uint64) * GOLDEN + seed.to(tl.uint64))
    state = (state ^ (state >> 30)) * FIRST
    state = (state ^ (state >> 27)) * SECOND
    state = tl.where(inside, (state ^ (state >> 31)).to(tl.int64, bitcast=True), 0)
    tl.store(sums + tl.program_id(0), tl.sum(state, 0))
