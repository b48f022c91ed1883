"""Products with 4- or 8-bit weights under bf16 or fp16 activations, on the matrix unit.

One program makes [BN columns, BM rows] of the output, transposed: the weights are the first operand
of every dot, so that few rows do not waste the unit and many rows do not change its instruction.
Within a run of one scale the sum over k is one chain of matrix instructions; then one fused
multiply-add with the scale. `tl.fma` says where a multiplication and an addition are one rounding:
nothing else is contracted (`launch`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tree import climb
from .unpack import unit_values

TILE = tl.constexpr(64)
CHUNK = tl.constexpr(128)


@triton.jit
def chunk_words(words, columns, chunks, BITS: tl.constexpr):
    """Where the words of a chunk begin: pointers `[BN, 4 * BITS]` into the tile of each column."""
    WORDS: tl.constexpr = 4 * BITS
    place = columns // TILE * (chunks * TILE * WORDS) + columns % TILE * WORDS
    return words + place[:, None] + tl.arange(0, WORDS)[None, :]


@triton.jit
def scale_and_zero(
    table, run, ZEROS: tl.constexpr, FIELDS: tl.constexpr, SCALE: tl.constexpr, BITS: tl.constexpr
):
    """Scale fp32 `[BN]` and zero point int32 `[BN, 1]`, or a number, of a run (see `layout`)."""
    entry = tl.load(table + run * (FIELDS * TILE))
    if FIELDS == 2:
        scale = entry.to(tl.float32, bitcast=True)
    else:
        scale = (entry & 0xFFFF).to(tl.int16).to(SCALE, bitcast=True).to(tl.float32)
    if not ZEROS:
        zero = 1 << (BITS - 1)
    elif FIELDS == 2:
        zero = tl.load(table + run * (FIELDS * TILE) + TILE)[:, None]
    else:
        zero = (entry >> 16)[:, None]
    return scale, zero


@triton.jit
def short_runs(
    x, words, tables, first, last, rows, columns, M, K, chunks, runs,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, BITS: tl.constexpr,
    UNIT: tl.constexpr, FIELDS: tl.constexpr, ZEROS: tl.constexpr, SCALE: tl.constexpr,
    ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, TYPES: tl.constexpr, BASE: tl.constexpr,
    NUMBER: tl.constexpr,
):  # fmt: skip
    """The sum over chunks first..last - 1, each 128 / UNIT runs, fp32 `[BN, BM]`."""
    word = chunk_words(words, columns, chunks, BITS)
    table = tables + columns // TILE * (runs * FIELDS * TILE) + columns % TILE
    column = x + rows[None, :] * K + tl.arange(0, UNIT)[:, None]
    present = tl.broadcast_to((rows < M)[None, :], [UNIT, BM])
    total = tl.zeros([BN, BM], tl.float32)
    for chunk in tl.range(first, last, num_stages=STAGES):
        packed = tl.load(word + chunk * (TILE * 4 * BITS))
        for unit in tl.static_range(CHUNK // UNIT):
            run = chunk * (CHUNK // UNIT) + unit
            scale, zero = scale_and_zero(table, run, ZEROS, FIELDS, SCALE, BITS)
            values = unit_values(
                packed, zero, unit * UNIT, UNIT, BITS,
                ASSEMBLY, CONSTRAINTS, TYPES, BASE, NUMBER,
            )  # fmt: skip
            inputs = tl.load(column + (chunk * CHUNK + unit * UNIT), mask=present, other=0.0)
            part = tl.dot(values, inputs, tl.zeros([BN, BM], tl.float32))
            total = tl.fma(part, tl.broadcast_to(scale[:, None], [BN, BM]), total)
    return total


@triton.jit
def long_runs(
    x, words, tables, run_chunks, first, last, rows, columns, M, K, chunks, runs,
    BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, BITS: tl.constexpr,
    FIELDS: tl.constexpr, ZEROS: tl.constexpr, SCALE: tl.constexpr,
    ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, TYPES: tl.constexpr, BASE: tl.constexpr,
    NUMBER: tl.constexpr,
):  # fmt: skip
    """The sum over runs first..last - 1, each of any number of chunks, fp32 `[BN, BM]`."""
    word = chunk_words(words, columns, chunks, BITS)
    table = tables + columns // TILE * (runs * FIELDS * TILE) + columns % TILE
    column = x + rows[None, :] * K + tl.arange(0, CHUNK)[:, None]
    present = tl.broadcast_to((rows < M)[None, :], [CHUNK, BM])
    total = tl.zeros([BN, BM], tl.float32)
    for run in range(first, last):
        scale, zero = scale_and_zero(table, run, ZEROS, FIELDS, SCALE, BITS)
        part = tl.zeros([BN, BM], tl.float32)
        begin, end = tl.load(run_chunks + run), tl.load(run_chunks + run + 1)
        for chunk in tl.range(begin, end, num_stages=STAGES):
            values = unit_values(
                tl.load(word + chunk * (TILE * 4 * BITS)), zero, 0, CHUNK, BITS,
                ASSEMBLY, CONSTRAINTS, TYPES, BASE, NUMBER,
            )  # fmt: skip
            inputs = tl.load(column + chunk * CHUNK, mask=present, other=0.0)
            part = tl.dot(values, inputs, part)
        total = tl.fma(part, tl.broadcast_to(scale[:, None], [BN, BM]), total)
    return total


@triton.jit(do_not_specialize=["M", "chunks", "runs", "first_segment"])
def quantized_product(
    x, words, tables, run_chunks, offsets, bias, out, M, N, K, chunks, runs, first_segment,
    LEVEL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr,
    BITS: tl.constexpr, UNIT: tl.constexpr, FIELDS: tl.constexpr, ZEROS: tl.constexpr,
    SCALE: tl.constexpr, ASSEMBLY: tl.constexpr, CONSTRAINTS: tl.constexpr, TYPES: tl.constexpr,
    BASE: tl.constexpr, NUMBER: tl.constexpr,
):  # fmt: skip
    """out fp32 `[planes, M, N]`: plane i is the root of the tree over 2^LEVEL segments.

    offsets int32 `[S + 1]` are in runs where run_chunks int32 `[R + 1]` is given, else in chunks.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    plane = tl.program_id(2)
    begin = first_segment + (plane << LEVEL)
    value = tl.zeros([BN, BM], tl.float32)
    first, second, third, fourth = value, value, value, value
    for leaf in range(1 << LEVEL):
        low, high = tl.load(offsets + begin + leaf), tl.load(offsets + begin + leaf + 1)
        if run_chunks is None:
            value = short_runs(
                x, words, tables, low, high, rows, columns, M, K, chunks, runs,
                BM, BN, STAGES, BITS, UNIT, FIELDS, ZEROS, SCALE,
                ASSEMBLY, CONSTRAINTS, TYPES, BASE, NUMBER,
            )  # fmt: skip
        else:
            value = long_runs(
                x, words, tables, run_chunks, low, high, rows, columns, M, K, chunks, runs,
                BM, BN, STAGES, BITS, FIELDS, ZEROS, SCALE,
                ASSEMBLY, CONSTRAINTS, TYPES, BASE, NUMBER,
            )  # fmt: skip
        if LEVEL > 0:
            value, first, second, third, fourth = climb(
                leaf, value, first, second, third, fourth, LEVEL
            )
    if bias is not None:
        value += tl.load(bias + columns, mask=columns < N, other=0.0)[:, None]
    inside = (rows < M)[None, :] & (columns < N)[:, None]
    place = (plane * M + rows[None, :]).to(tl.int64) * N + columns[:, None]
    tl.store(out + place, value, mask=inside)
