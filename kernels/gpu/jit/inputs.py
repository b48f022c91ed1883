"""Activations as products take them: in packed order, or as int8 codes with a scale a segment."""

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = tl.constexpr(128)


@triton.jit
def gather_inputs(x, gather, out, K, packed_k, BLOCK: tl.constexpr):
    """out `[M, packed_k]`: column i is column gather[i] of x `[M, K]`, 0 where that is -1."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < packed_k
    index = tl.load(gather + place, mask=inside, other=-1)
    value = tl.load(x + row * K + index, mask=index >= 0, other=0.0)
    tl.store(out + row * packed_k + place, value, mask=inside)


@triton.jit
def _values(x, gather, row, place, inside, K):
    if gather is None:
        value = tl.load(x + row * K + place, mask=inside, other=0.0)
    else:
        index = tl.load(gather + place, mask=inside, other=-1)
        value = tl.load(x + row * K + index, mask=index >= 0, other=0.0)
    return value.to(tl.float32)


@triton.jit(do_not_specialize=["M", "input_scale"])
def quantize_inputs(
    x, gather, offsets, codes, scales, M, K, packed_k, input_scale,
    DYNAMIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """codes int8 `[M, packed_k]` and scales fp32 `[S, M]` of x `[M, K]`.

    A segment's part of a row is divided by absmax / 127, or by input_scale, rounded half to even
    and clamped to -128..127 (why 127: kernels/cpu/linear/quantize.h). A part with a NaN or an
    infinity has codes 0 and the scale NaN.
    """
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    begin, end = tl.load(offsets + segment) * CHUNK, tl.load(offsets + segment + 1) * CHUNK
    most = tl.zeros([BLOCK], tl.int32)
    for k in range(begin, end, BLOCK):
        place = k + tl.arange(0, BLOCK)
        value = _values(x, gather, row, place, place < end, K)
        # As integers, magnitudes of floats are ordered as they are, infinities and NaN on top.
        most = tl.maximum(most, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    highest = tl.max(most, 0)
    finite = highest < 0x7F800000
    scale = input_scale
    if DYNAMIC:
        scale = tl.div_rn(highest.to(tl.float32, bitcast=True), 127.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    for k in range(begin, end, BLOCK):
        place = k + tl.arange(0, BLOCK)
        value = _values(x, gather, row, place, place < end, K)
        value = tl.div_rn(tl.where(finite, value, 0.0), tl.zeros([BLOCK], tl.float32) + scale)
        value = tl.minimum(tl.maximum(value, -128.0), 127.0)
        # 1.5 * 2^23: adding it leaves the nearest integer in the low bits, ties to even.
        code = (value + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
        tl.store(codes + row * packed_k + place, code.to(tl.int8), mask=place < end)
    nan = tl.full([], float("nan"), tl.float32)
    tl.store(scales + segment * M + row, tl.where(finite, scale, nan))
