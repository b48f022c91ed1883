"""Words to the values of a unit (see `gpu.unpack`)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def unit_values(
    words,
    zero,
    FIRST: tl.constexpr,
    UNIT: tl.constexpr,
    BITS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
    TYPES: tl.constexpr,
    BASE: tl.constexpr,
    NUMBER: tl.constexpr,
):
    """(code - zero) of k = FIRST..FIRST + UNIT - 1: words `[BN, 4 * BITS]`, zero int32 `[BN]` or a
    number, give `[BN, UNIT]`. UNIT is 32, 64 or 128."""
    PER: tl.constexpr = UNIT // (4 * BITS)
    offset = tl.full(words.shape, 0.0, tl.float32) - (BASE + zero)
    planes = tl.inline_asm_elementwise(
        ASSEMBLY[FIRST // UNIT],
        CONSTRAINTS,
        [words, offset.to(NUMBER)],
        dtype=TYPES,
        is_pure=True,
        pack=2,
    )
    # Joining two puts them innermost: the last pair joined is the lowest bit of the plane.
    if PER == 1:
        values = planes[0]
    elif PER == 2:
        values = tl.permute(tl.join(planes[0], planes[1]), (0, 2, 1))
    elif PER == 4:
        even, odd = tl.join(planes[0], planes[2]), tl.join(planes[1], planes[3])
        values = tl.permute(tl.join(even, odd), (0, 2, 3, 1))
    else:
        even = tl.join(tl.join(planes[0], planes[4]), tl.join(planes[2], planes[6]))
        odd = tl.join(tl.join(planes[1], planes[5]), tl.join(planes[3], planes[7]))
        values = tl.permute(tl.join(even, odd), (0, 2, 3, 4, 1))
    return tl.reshape(values, (words.shape[0], UNIT))
