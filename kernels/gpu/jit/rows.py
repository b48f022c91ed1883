"""Ops on rows: RMS norm with the residual, silu(gate) * up, rotary embedding with the cache write.

The sum of a norm is one reduction whose order follows from the width of a row and nothing else:
block and warps are chosen by the width alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...step.kv_cache import PAGE

PAGE_SIZE = tl.constexpr(PAGE)


@triton.jit
def rms_norm_rows(x, add, bias, weight, out, width, eps, BLOCK: tl.constexpr):
    """out `[M, width]` = x over its root mean square, times weight; fp32 until one rounding.

    With add: add becomes add + bias, x becomes x + add, both fp32 `[M, width]`, first.
    """
    start = tl.program_id(0).to(tl.int64) * width
    place = tl.arange(0, BLOCK)
    inside = place < width
    value = tl.load(x + start + place, mask=inside, other=0.0)
    if add is not None:
        root = tl.load(add + start + place, mask=inside, other=0.0)
        if bias is not None:
            root += tl.load(bias + place, mask=inside, other=0.0)
            tl.store(add + start + place, root, mask=inside)
        value += root
        tl.store(x + start + place, value, mask=inside)
    if out is not None:
        mean = tl.div_rn(tl.sum(value * value, 0), tl.zeros([], tl.float32) + width)
        inverse = tl.div_rn(tl.full([], 1.0, tl.float32), tl.sqrt_rn(mean + eps))
        factor = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
        normed = value * inverse * factor
        tl.store(out + start + place, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_mul_rows(gate, up, out, size, BLOCK: tl.constexpr):
    """out = silu(gate) * up over `size` elements; fp32 until one rounding."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    value = tl.load(gate + place, mask=inside, other=0.0)
    silu = tl.div_rn(value, 1.0 + tl.exp(-value))
    result = silu * tl.load(up + place, mask=inside, other=0.0)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turned(head, norm, angles_cos, angles_sin, eps, D, HALF: tl.constexpr):
    """Both halves of one head, normed where `norm` is given, turned by an angle each."""
    i = tl.arange(0, HALF)
    inside = i < D // 2
    low = tl.load(head + i, mask=inside, other=0.0)
    high = tl.load(head + D // 2 + i, mask=inside, other=0.0)
    if norm is not None:
        squares = tl.sum(low * low, 0) + tl.sum(high * high, 0)
        mean = tl.div_rn(squares, tl.zeros([], tl.float32) + D)
        inverse = tl.div_rn(tl.full([], 1.0, tl.float32), tl.sqrt_rn(mean + eps))
        low = low * inverse * tl.load(norm + i, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(norm + D // 2 + i, mask=inside, other=0.0).to(tl.float32)
        high = high * inverse * factor
    cos = tl.load(angles_cos + i, mask=inside, other=0.0)
    sin = tl.load(angles_sin + i, mask=inside, other=0.0)
    return tl.fma(low, cos, -(high * sin)), tl.fma(high, cos, low * sin)


@triton.jit(do_not_specialize=["q_heads", "kv_heads"])
def rope_and_cache_rows(
    q, k, v, cos, sin, positions, slots, q_norm, k_norm, out, keys, values, eps,
    q_heads, kv_heads, D, HALF: tl.constexpr,
):  # fmt: skip
    """One head of q into out `[M, Hq, D]`, or one of k and v into the cache (see `cache`)."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    angle = tl.load(positions + row) * (D // 2)
    i = tl.arange(0, HALF)
    inside = i < D // 2
    number: tl.constexpr = out.dtype.element_ty
    if head < q_heads:
        place = (row * q_heads + head) * D
        low, high = _turned(q + place, q_norm, cos + angle, sin + angle, eps, D, HALF)
        tl.store(out + place + i, low.to(number), mask=inside)
        tl.store(out + place + D // 2 + i, high.to(number), mask=inside)
    else:
        place = (row * kv_heads + head - q_heads) * D
        low, high = _turned(k + place, k_norm, cos + angle, sin + angle, eps, D, HALF)
        slot = tl.load(slots + row)
        offset = slot % PAGE_SIZE
        plane = (slot // PAGE_SIZE * kv_heads + head - q_heads) * D * PAGE_SIZE
        key = keys + plane + offset
        tl.store(key + i * PAGE_SIZE, low.to(number), mask=inside)
        tl.store(key + (D // 2 + i) * PAGE_SIZE, high.to(number), mask=inside)
        value = values + plane + offset * D
        low = tl.load(v + place + i, mask=inside, other=0.0)
        high = tl.load(v + place + D // 2 + i, mask=inside, other=0.0)
        tl.store(value + i, low.to(number), mask=inside)
        tl.store(value + D // 2 + i, high.to(number), mask=inside)
