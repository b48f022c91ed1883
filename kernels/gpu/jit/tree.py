"""The one order of additions, a balanced binary tree: `((a0+a1)+(a2+a3))+((a4+a5)+(a6+a7))`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def climb(leaf, value, first, second, third, fourth, LEVEL: tl.constexpr):
    """Adds a leaf to the complete subtrees to its left, as a binary counter carries.

    first..fourth are the sums that wait, of 1, 2, 4 and 8 leaves. After the last of 2^LEVEL leaves
    `value` is the root.
    """
    if leaf & 1 == 0:
        first = value
    else:
        value = first + value
        if LEVEL > 1:
            if leaf & 2 == 0:
                second = value
            else:
                value = second + value
                if LEVEL > 2:
                    if leaf & 4 == 0:
                        third = value
                    else:
                        value = third + value
                        if LEVEL > 3:
                            if leaf & 8 == 0:
                                fourth = value
                            else:
                                value = fourth + value
    return value, first, second, third, fourth


@triton.jit
def subtree(planes, stride, place, inside, FIRST: tl.constexpr, LEVEL: tl.constexpr):
    """The sum of planes FIRST..FIRST + 2^LEVEL - 1, fp32, `stride` apart."""
    if LEVEL == 0:
        value = tl.load(planes + FIRST * stride + place, mask=inside, other=0.0)
    else:
        left = subtree(planes, stride, place, inside, FIRST, LEVEL - 1)
        right = subtree(planes, stride, place, inside, FIRST + (1 << (LEVEL - 1)), LEVEL - 1)
        value = left + right
    return value


@triton.jit(do_not_specialize=["size"])
def add_planes(planes, bias, out, size, N, LEVEL: tl.constexpr, BLOCK: tl.constexpr):
    """out fp32 `[M, N]`, M * N = size: the tree over fp32 `[2^LEVEL, M, N]`, plus bias `[N]`."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    value = subtree(planes, size, place, inside, 0, LEVEL)
    if bias is not None:
        value += tl.load(bias + place % N, mask=inside, other=0.0)
    tl.store(out + place, value, mask=inside)
