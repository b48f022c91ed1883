"""What a step says of itself: digests of what all ranks compute alike, and the greedy tokens.

Two kernels. Every program of the first takes one block of one line of one tensor and leaves a sum
and, of logits, a key; every program of the second adds the sums of one tensor or of one row of
logits, and finds its greatest key. Integers may be added in any order, so neither blocks nor the
rows that a step is padded to show in the result.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .reductions import FIRST, GOLDEN, SECOND

NOT_FINITE = tl.constexpr(0x7FFFFFFFFFFFFFFF)
NOTHING = tl.constexpr(-0x7FFFFFFFFFFFFFFF)
INFINITY = tl.constexpr(0x7F800000)
ALL_BUT_SIGN = tl.constexpr(0x7FFFFFFF)
SUM_BLOCK = 1024
SUMS = tl.constexpr(SUM_BLOCK)


@triton.jit
def mixed(word, place):
    """Words int64, each mixed with its place as in `reductions.digest_words` with seed 0."""
    state = word.to(tl.uint64) ^ ((place + 1).to(tl.uint64) * GOLDEN)
    state = (state ^ (state >> 30)) * FIRST
    state = (state ^ (state >> 27)) * SECOND
    return (state ^ (state >> 31)).to(tl.int64, bitcast=True)


@triton.jit
def block_of_line(words, sums, program, part, lines, width, BLOCK: tl.constexpr):
    """sums[program]: over block `part` of all lines together; 0 for a line beyond `lines`."""
    blocks = tl.cdiv(width, BLOCK)
    line = (part // blocks).to(tl.int64)
    column = part % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = (column < width) & (line < lines)
    place = line * width + column
    number: tl.constexpr = words.dtype.element_ty
    mask: tl.constexpr = (1 << number.primitive_bitwidth) - 1
    word = tl.load(words + place, mask=inside, other=0).to(tl.int64) & mask
    tl.store(sums + program, tl.sum(tl.where(inside, mixed(word, place), 0), 0))


@triton.jit
def block_of_logits(logits, sums, keys, program, part, lines, width, BLOCK: tl.constexpr):
    """sums[program] over one block of one row, and in keys[part] its greatest key.

    The key of a finite value orders by the value, then by the place, the first being greatest; both
    zeros are one value. That of any other value is greater than all.
    """
    blocks = tl.cdiv(width, BLOCK)
    line = (part // blocks).to(tl.int64)
    column = part % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = (column < width) & (line < lines)
    value = tl.load(logits + line * width + column, mask=inside, other=0.0)
    bits = value.to(tl.int32, bitcast=True)
    word = bits.to(tl.int64) & 0xFFFFFFFF
    place = column.to(tl.int64)
    tl.store(sums + program, tl.sum(tl.where(inside, mixed(word, place), 0), 0))
    one_zero = tl.where(value == 0.0, 0, bits)
    ascending = one_zero ^ ((one_zero >> 31) & ALL_BUT_SIGN)
    key = (ascending.to(tl.int64) << 32) | (ALL_BUT_SIGN - place)
    key = tl.where((bits & ALL_BUT_SIGN) >= INFINITY, NOT_FINITE, key)
    tl.store(keys + part, tl.max(tl.where(inside, key, NOTHING), 0))


@triton.jit(do_not_specialize=["hidden_end", "normed_end", "last_end", "normed_lines"])
def read_lines(
    hidden, normed, last, logits, counts, sums, keys, hidden_end, normed_end, last_end,
    normed_lines, width, vocabulary, BLOCK: tl.constexpr,
):  # fmt: skip
    """Words hidden `[rows, width]`, normed `[normed_lines, width]`, last `[sampled, width]`, and
    fp32 logits `[sampled, vocabulary]`; counts int64 `[2]`: how many rows and sampled rows there
    are. A tensor's programs end before its `_end`, the rest are those of logits."""
    program = tl.program_id(0)
    if program < hidden_end:
        block_of_line(hidden, sums, program, program, tl.load(counts), width, BLOCK)
    elif program < normed_end:
        block_of_line(normed, sums, program, program - hidden_end, normed_lines, width, BLOCK)
    elif program < last_end:
        lines = tl.load(counts + 1)
        block_of_line(last, sums, program, program - normed_end, lines, width, BLOCK)
    else:
        lines, part = tl.load(counts + 1), program - last_end
        block_of_logits(logits, sums, keys, program, part, lines, vocabulary, BLOCK)


@triton.jit
def sum_of(sums, begin, end):
    """The sum of sums[begin..end - 1], modulo 2^64."""
    total = tl.zeros([SUMS], tl.int64)
    for start in range(begin, end, SUMS):
        place = start + tl.arange(0, SUMS)
        total += tl.load(sums + place, mask=place < end, other=0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["hidden_end", "normed_end", "last_end", "sampled", "blocks"])
def finish_lines(sums, keys, out, hidden_end, normed_end, last_end, sampled, blocks):
    """out int64: the sums of the three tensors, `sampled` tokens (-1 where a row is not finite),
    `sampled` sums of rows; a row of logits has `blocks` blocks."""
    number = tl.program_id(0)
    if number < 3:
        begin = tl.where(number == 0, 0, tl.where(number == 1, hidden_end, normed_end))
        end = tl.where(number == 0, hidden_end, tl.where(number == 1, normed_end, last_end))
        tl.store(out + number, sum_of(sums, begin, end))
    else:
        first = (number - 3) * blocks
        begin = last_end + first
        tl.store(out + sampled + number, sum_of(sums, begin, begin + blocks))
        best = tl.full([SUMS], NOTHING, tl.int64)
        for start in range(first, first + blocks, SUMS):
            place = start + tl.arange(0, SUMS)
            key = tl.load(keys + place, mask=place < first + blocks, other=NOTHING)
            best = tl.maximum(best, key)
        key = tl.max(best, 0)
        token = ALL_BUT_SIGN - (key & 0xFFFFFFFF)
        tl.store(out + number, tl.where(key == NOT_FINITE, -1, token))
