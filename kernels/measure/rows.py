"""The other ops to measure: norm, activation, rotary embedding with the cache write, attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..program import record
from ..program.program import Program
from ..step.buffer import Buffer
from ..step.kv_cache import PAGE, KVCache
from ..step.step import Step, StepLimits
from .compare import Case
from .steps import decode_step, one_position, prefill_step

BF16 = torch.bfloat16
EPS = 1e-6
SMALL_CALLS = 50  # in one run, so that entering the program does not count


class Heads(NamedTuple):
    """Query heads, KV heads and head size of an attention layer."""

    queries: int = 12
    kv: int = 2
    size: int = 128


def norm_case(width: int, rows: int) -> Case:
    """RMS norm with the residual addition, float32 to bf16."""
    program, weight = _program(), torch.rand(width)
    x, add = program.buffer(width, torch.float32), program.buffer(width, torch.float32)
    out = program.buffer(width, BF16)
    for _ in range(SMALL_CALLS):
        record.rms_norm(program, x, weight, EPS, out, add=add)
    run = _run(program, one_position(rows), x, add)
    a, b = torch.randn(rows, width), torch.randn(rows, width)
    return Case(
        op="residual, norm",
        shape=str(width),
        rows=rows,
        nbytes=rows * width * (4 * 4 + 2) + 4 * width,
        operations=5 * rows * width,
        calls=SMALL_CALLS,
        run=run,
        rivals={"torch": _repeated(lambda: F.rms_norm(a + b, (width,), weight, EPS).bfloat16())},
    )


def silu_case(width: int, rows: int) -> Case:
    """silu(gate) * up, float32 to bf16."""
    program = _program()
    gate, up = program.buffer(width, torch.float32), program.buffer(width, torch.float32)
    out = program.buffer(width, BF16)
    for _ in range(SMALL_CALLS):
        record.silu_mul(program, gate, up, out)
    run = _run(program, one_position(rows), gate, up)
    a, b = torch.randn(rows, width), torch.randn(rows, width)
    return Case(
        op="silu * up",
        shape=str(width),
        rows=rows,
        nbytes=rows * width * 10,
        operations=4 * rows * width,
        calls=SMALL_CALLS,
        run=run,
        rivals={"torch": _repeated(lambda: (F.silu(a) * b).bfloat16())},
    )


def attention_case(heads: Heads, rows: int, context: int) -> Case:
    """Rotary embedding, cache write and attention: `rows` sequences at decode, or one prefill.

    A prefill is meant when context is 0. Torch attends over contiguous keys of the same length,
    without rotary embedding and cache write.
    """
    step = decode_step(rows, context) if context else prefill_step(rows)
    keys = context or rows
    pages = int(step.block_tables.max()) + 1
    program = Program(StepLimits(vocabulary=1, positions=keys, pages=pages))
    cache = KVCache.allocate(pages, heads.kv, heads.size, BF16)
    cache.keys.normal_()
    cache.values.normal_()
    q = program.buffer(heads.queries * heads.size, torch.float32)
    k, v = (program.buffer(heads.kv * heads.size, torch.float32) for _ in range(2))
    turned, out = (program.buffer(q.width, BF16) for _ in range(2))
    table = torch.ones(keys, heads.size // 2)
    record.rope_and_cache(
        program,
        q,
        k,
        v,
        turned,
        cos=table,
        sin=torch.zeros_like(table),
        cache=cache,
        q_norm=None,
        k_norm=None,
        eps=EPS,
    )
    shared = heads.queries // heads.kv
    kv_of = torch.arange(heads.queries, dtype=torch.int32) // shared
    record.attention(program, turned, cache, out, head_to_kv=kv_of, scale=0.1, window=0)
    sequences = rows if context else 1
    queries = torch.randn(sequences, heads.queries, rows // sequences, heads.size).bfloat16()
    theirs = torch.randn(sequences, heads.kv, keys, heads.size).bfloat16()
    read = sequences * -(-keys // PAGE) * PAGE * heads.kv * heads.size * 2 * 2
    pairs = rows * keys if context else rows * (rows + 1) // 2
    return Case(
        op="decode attention" if context else "prefill attention",
        shape=f"{heads.queries}/{heads.kv}, {keys} keys",
        rows=rows,
        nbytes=read,
        operations=4 * pairs * heads.queries * heads.size,
        calls=1,
        run=_run(program, step, q, k, v),
        rivals={
            "torch": lambda: F.scaled_dot_product_attention(
                queries, theirs, theirs, is_causal=not context, enable_gqa=True
            )
        },
    )


def _repeated(call: Callable[[], object]) -> Callable[[], object]:
    return lambda: [call() for _ in range(SMALL_CALLS)]


def _program() -> Program:
    return Program(StepLimits(vocabulary=1, positions=1, pages=1))


def _run(program: Program, step: Step, *inputs: Buffer) -> Callable[[], object]:
    program.run(step)
    for buffer in inputs:
        program.rows_of(buffer).normal_()
    return lambda: program.run(step)
