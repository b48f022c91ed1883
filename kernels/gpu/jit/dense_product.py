"""Products without codes: bf16 or fp16 values, and int8 weights under int8 activations.

As in `product` the weights are the first operand of every dot, and a segment is one chain of matrix
instructions over k. Sums of int8 products are exact int32 in any order; then three fp32 steps, each
one rounding, as on the CPU and with its bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tree import climb

CHUNK = tl.constexpr(128)


@triton.jit(do_not_specialize=["M", "first_segment"])
def dense_product(
    x, values, input_scales, column_scales, offsets, bias, out, M, N, K, padded_n, first_segment,
    LEVEL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """out fp32 `[planes, M, N]` of x `[M, K]` and values `[padded_n, K]`, both with packed k.

    With int8 x: input_scales fp32 `[S, M]`, column_scales fp32 `[S, padded_n]`. offsets int32
    `[S + 1]` in chunks. Plane i is the root of the tree over 2^LEVEL segments.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    plane = tl.program_id(2)
    begin = first_segment + (plane << LEVEL)
    number: tl.constexpr = tl.float32 if input_scales is None else tl.int32
    weight = values + columns.to(tl.int64)[:, None] * K + tl.arange(0, BK)[None, :]
    column = x + rows[None, :] * K + tl.arange(0, BK)[:, None]
    present = tl.broadcast_to((rows < M)[None, :], [BK, BM])
    value = tl.zeros([BN, BM], tl.float32)
    first, second, third, fourth = value, value, value, value
    for leaf in range(1 << LEVEL):
        segment = begin + leaf
        low, high = tl.load(offsets + segment) * CHUNK, tl.load(offsets + segment + 1) * CHUNK
        total = tl.zeros([BN, BM], number)
        for k in tl.range(low, high, BK, num_stages=STAGES):
            inputs = tl.load(column + k, mask=present, other=0.0)
            total = tl.dot(tl.load(weight + k), inputs, total, out_dtype=number)
        if input_scales is not None:
            row_scale = tl.load(input_scales + segment * M + rows, mask=rows < M, other=0.0)
            column_scale = tl.load(column_scales + segment * padded_n + columns)
            value = total.to(tl.float32) * row_scale[None, :] * column_scale[:, None]
        else:
            value = total
        if LEVEL > 0:
            value, first, second, third, fourth = climb(
                leaf, value, first, second, third, fourth, LEVEL
            )
    if bias is not None:
        value += tl.load(bias + columns, mask=columns < N, other=0.0)[:, None]
    inside = (rows < M)[None, :] & (columns < N)[:, None]
    place = (plane * M + rows[None, :]).to(tl.int64) * N + columns[:, None]
    tl.store(out + place, value, mask=inside)
