"""Attention over pages, in an order of additions that only a row's own position decides.

Keys are walked 64 at a time at absolute positions, in stretches of 512. Each stretch is an online
softmax from an empty state, and the states are combined in order: by the program itself, or by
another kernel where many programs share one long sequence. Both have the same bits.

Everything is transposed, as in `product`: keys and features are the first operand of a dot, so that
one query and many run the same matrix instructions. The sum of the weights of a page is one of
integers, exact in any order: a reduction in floats would follow the layout of the block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...step.kv_cache import PAGE

PAGE_SIZE = tl.constexpr(PAGE)
STRETCH = 8
"""Pages."""
PAGES = tl.constexpr(STRETCH)


@triton.jit
def combine(top, weight, sums, next_top, next_weight, next_sums):
    """Two states of an online softmax, the earlier keys first, in base 2."""
    highest = tl.maximum(top, next_top)
    safe = tl.where(highest == float("-inf"), 0.0, highest)
    fade, next_fade = tl.exp2(top - safe), tl.exp2(next_top - safe)
    weight = weight * fade + next_weight * next_fade
    if len(sums.shape) == 2:
        fade, next_fade = fade[None, :], next_fade[None, :]
    return highest, weight, sums * fade + next_sums * next_fade


@triton.jit
def stretch_state(
    queries, keys, values, table, first, last, begins, ends, kv_head, kv_heads, D, scale,
    BM: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Pages first..last - 1 under queries `[BD, BM]`: greatest score and weight `[BM]`, and the
    weighted sum of values `[BD, BM]`. A column sees the keys from begins to ends - 1."""
    number: tl.constexpr = queries.dtype
    d, j = tl.arange(0, BD), tl.arange(0, PAGE_SIZE)
    final = tl.max(ends, 0)
    top = tl.full([BM], float("-inf"), tl.float32)
    weight = tl.zeros([BM], tl.float32)
    sums = tl.zeros([BD, BM], tl.float32)
    for page in tl.range(first, last, num_stages=STAGES):
        plane = (tl.load(table + page).to(tl.int64) * kv_heads + kv_head) * D * PAGE_SIZE
        key_place = d[None, :] * PAGE_SIZE + j[:, None]
        inside = tl.broadcast_to(d[None, :] < D, [PAGE_SIZE, BD])
        page_keys = tl.load(keys + plane + key_place, mask=inside, other=0.0)
        scores = tl.dot(page_keys, queries, tl.zeros([PAGE_SIZE, BM], tl.float32)) * scale
        index = (j + page * PAGE_SIZE)[:, None]
        seen = (index >= begins[None, :]) & (index < ends[None, :])
        scores = tl.where(seen, scores, float("-inf"))
        highest = tl.maximum(top, tl.max(scores, 0))
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores - safe[None, :])
        fade = tl.exp2(top - safe)
        # In steps of 2^-23, as the mantissa of a number between 1 and 2 has them.
        steps = (weights + 1.0).to(tl.int32, bitcast=True) - 0x3F800000
        weight = weight * fade + tl.sum(steps, 0).to(tl.float32) * (2.0**-23)
        # Slots that nobody has written may hold anything, and 0 * NaN is NaN.
        written = (d[:, None] < D) & (j + page * PAGE_SIZE < final)[None, :]
        value_place = j[None, :] * D + d[:, None]
        page_values = tl.load(values + plane + value_place, mask=written, other=0.0)
        sums = tl.dot(page_values, weights.to(number), sums * fade[None, :])
        top = highest
    return top, weight, sums


@triton.jit(do_not_specialize=["q_heads", "kv_heads", "pages", "stretches", "window"])
def attend(
    q, keys, values, tables, row_sequence, positions, chunks, head_begins, out,
    tops, weights, partial, q_heads, kv_heads, D, pages, stretches, scale, window,
    PARTS: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out `[M, Hq, D]` for the rows of a chunk and the query heads of one KV head, of which each of
    PARTS programs takes up to BM; with more than one part a chunk is one row.

    chunks int32 `[C, 2]`: rows begin..end - 1, all of one sequence. head_begins int32 `[Hkv + 1]`.
    scale is in base 2. Without `tops` a program walks all stretches; with it, one, and leaves its
    state in tops and weights fp32 `[M, Hq, stretches]` and partial fp32 `[M, Hq, stretches, D]`.
    """
    chunk = tl.program_id(0)
    kv_head, part = tl.program_id(1) // PARTS, tl.program_id(1) % PARTS
    begin, end = tl.load(chunks + 2 * chunk), tl.load(chunks + 2 * chunk + 1)
    head_begin = tl.load(head_begins + kv_head) + part * BM
    heads = tl.minimum(tl.load(head_begins + kv_head + 1) - head_begin, BM)
    if heads > 0:
        column = tl.arange(0, BM)
        row, head = begin + column // heads, head_begin + column % heads
        present = row < end
        d = tl.arange(0, BD)
        place = (row.to(tl.int64) * q_heads + head) * D
        own = present[None, :] & (d[:, None] < D)
        queries = tl.load(q + place[None, :] + d[:, None], mask=own, other=0.0)
        ends = tl.load(positions + row, mask=present, other=-1) + 1
        begins = tl.zeros([BM], tl.int32)
        if window > 0:
            begins = tl.maximum(ends - window, 0)
        first = tl.min(tl.where(present, begins, 0x7FFFFFFF), 0) // PAGE_SIZE
        last = tl.cdiv(tl.max(ends, 0), PAGE_SIZE)
        table = tables + tl.load(row_sequence + begin).to(tl.int64) * pages
        if tops is None:
            top = tl.full([BM], float("-inf"), tl.float32)
            weight = tl.zeros([BM], tl.float32)
            sums = tl.zeros([BD, BM], tl.float32)
            for stretch in range(first // PAGES, tl.cdiv(last, PAGES)):
                low = tl.maximum(first, stretch * PAGES)
                high = tl.minimum(last, (stretch + 1) * PAGES)
                next_top, next_weight, next_sums = stretch_state(
                    queries, keys, values, table, low, high, begins, ends, kv_head, kv_heads, D,
                    scale, BM, BD, STAGES,
                )  # fmt: skip
                top, weight, sums = combine(top, weight, sums, next_top, next_weight, next_sums)
            # + 0.0: keys that a neighbour alone sees leave +0 where there was -0.
            result = tl.div_rn(sums, tl.broadcast_to(weight[None, :], [BD, BM])) + 0.0
            tl.store(out + place[None, :] + d[:, None], result.to(out.dtype.element_ty), mask=own)
        else:
            stretch = tl.program_id(2)
            low = tl.maximum(first, stretch * PAGES)
            high = tl.minimum(last, (stretch + 1) * PAGES)
            if low < high:
                top, weight, sums = stretch_state(
                    queries, keys, values, table, low, high, begins, ends, kv_head, kv_heads, D,
                    scale, BM, BD, STAGES,
                )  # fmt: skip
                state = (row.to(tl.int64) * q_heads + head) * stretches + stretch
                tl.store(tops + state, top, mask=present)
                tl.store(weights + state, weight, mask=present)
                tl.store(partial + state[None, :] * D + d[:, None], sums, mask=own)


@triton.jit(do_not_specialize=["q_heads", "stretches", "window"])
def combine_stretches(
    tops, weights, partial, positions, out, q_heads, D, stretches, window, BD: tl.constexpr
):
    """out `[M, Hq, D]` from the states that `attend` left: the same steps in the same order."""
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, BD)
    end = tl.load(positions + row) + 1
    begin = 0
    if window > 0:
        begin = tl.maximum(end - window, 0)
    top = tl.full([], float("-inf"), tl.float32)
    weight = tl.zeros([], tl.float32)
    sums = tl.zeros([BD], tl.float32)
    place = row.to(tl.int64) * q_heads + head
    for stretch in range(begin // PAGE_SIZE // PAGES, tl.cdiv(tl.cdiv(end, PAGE_SIZE), PAGES)):
        state = place * stretches + stretch
        part = tl.load(partial + state * D + d, mask=d < D, other=0.0)
        top, weight, sums = combine(
            top, weight, sums, tl.load(tops + state), tl.load(weights + state), part
        )
    result = tl.div_rn(sums, tl.zeros([BD], tl.float32) + weight) + 0.0
    tl.store(out + place * D + d, result.to(out.dtype.element_ty), mask=d < D)
