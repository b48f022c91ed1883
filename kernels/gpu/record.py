"""Recording ops into a `GpuProgram`: what `kernels.record` calls once it has checked arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import torch

from isobit.errors import InputError

from ..step.buffer import Buffer
from ..step.kv_cache import KVCache
from ..weights.weight import PackedWeight
from . import moves, rows
from .attention import Chunks, Heads, attention_work
from .bound import Bound, Op
from .launch import Launch
from .linear import HALVES, Node, check_dtypes, product_work, tree_nodes
from .listing import Call, Item
from .readout import Spoken
from .weight import GpuWeight

Meeting = Callable[[torch.Tensor, torch.Tensor], None]
"""A collective, given what a rank has and where the result goes."""


class Recorder(Protocol):
    """What ops are recorded into: a `GpuProgram`."""

    device: torch.device

    def record(self, op: Op) -> None:
        """Record an op."""
        ...

    def heads_of(self, head_to_kv: list[int], kv_heads: int, head: int) -> Heads:
        """The heads of size `head` that attend. Raises InputError E-KERNEL-SHAPE."""
        ...

    def read_out(self, spoken: Spoken) -> None:
        """Have every list end by digesting what a step says."""
        ...


def linear(
    program: Recorder,
    x: Buffer,
    weights: Sequence[PackedWeight] | Sequence[GpuWeight],
    outs: Sequence[Buffer],
    merges: torch.Tensor | None,
    biases: Sequence[torch.Tensor | None],
) -> None:
    """As record.linear. Raises InputError E-KERNEL-DTYPE, and E-KERNEL-SHAPE for merges that are
    not a row of complete trees."""
    nodes = None if merges is None else tree_nodes(merges.tolist())
    for weight, out, bias in zip(weights, outs, biases, strict=True):
        assert isinstance(weight, GpuWeight)
        check_dtypes(x.dtype, weight)
        if weight.n:
            program.record(_product(x, weight, out, nodes, bias))


def _product(
    x: Buffer,
    weight: GpuWeight,
    out: Buffer,
    nodes: list[Node] | None,
    bias: torch.Tensor | None,
) -> Op:
    def items(at: Bound) -> Sequence[Item]:
        planes, work = at.planes(out), at.arena.work()
        if out.width == weight.n:
            product_work(at.rows(x), weight, planes, nodes, bias=bias, work=work)
            return work.launches
        # The kernels write rows side by side.
        made = work.empty(*planes.shape[:2], weight.n, dtype=out.dtype, like=planes)
        product_work(at.rows(x), weight, made, nodes, bias=bias, work=work)

        def copy() -> None:
            planes[..., : weight.n].copy_(made)

        return [*work.launches, Call(function=copy, capturable=True)]

    return items


def rms_norm(
    program: Recorder,
    x: Buffer,
    add: Buffer | None,
    bias: torch.Tensor | None,
    weight: torch.Tensor | None,
    eps: float,
    out: Buffer | None,
) -> None:
    """As record.rms_norm, and as record.add without weight and out."""
    program.record(
        lambda at: [
            rows.rms_norm(
                at.rows(x),
                weight,
                eps,
                None if out is None else at.rows(out),
                add=None if add is None else at.rows(add),
                bias=bias,
            )
        ]
    )


def silu_mul(program: Recorder, gate: Buffer, up: Buffer, out: Buffer) -> None:
    """As record.silu_mul."""
    program.record(lambda at: [rows.silu_mul(at.rows(gate), at.rows(up), at.rows(out))])


def rope_and_cache(
    program: Recorder,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    out: Buffer,
    *,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: KVCache,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
) -> None:
    """As record.rope_and_cache."""
    program.record(
        lambda at: [
            rows.rope_and_cache(
                at.rows(q), at.rows(k), at.rows(v), at.rows(out), cos=cos, sin=sin,
                positions=at.memory.positions, slots=at.memory.slots, cache=cache,
                q_norm=q_norm, k_norm=k_norm, eps=eps,
            )
        ]
    )  # fmt: skip


def attention(
    program: Recorder,
    q: Buffer,
    cache: KVCache,
    out: Buffer,
    *,
    head_to_kv: torch.Tensor,
    scale: float,
    window: int,
) -> None:
    """As record.attention. Raises InputError E-KERNEL-DTYPE for a cache in float32, and
    E-KERNEL-SHAPE unless KV heads ascend with the query heads."""
    if cache.dtype not in HALVES:
        raise InputError(
            "E-KERNEL-DTYPE",
            f"attention: q is {cache.dtype}; the CUDA kernels take bfloat16 and float16",
        )
    heads = program.heads_of(head_to_kv.tolist(), cache.kv_heads, cache.head_size)

    def items(at: Bound) -> Sequence[Item]:
        shape, memory = at.shape, at.memory
        chunks = Chunks(
            rows=memory.chunks[: shape.chunks], columns=shape.columns, stretches=shape.stretches
        )
        return attention_work(
            at.rows(q),
            cache,
            at.rows(out),
            block_tables=memory.tables,
            row_sequence=memory.sequence,
            positions=memory.positions,
            heads=heads,
            chunks=chunks,
            scale=scale,
            window=window,
            split=shape.stretches > 1,
            work=at.arena.work(),
        ).launches

    program.record(items)


def embed(
    program: Recorder,
    table: torch.Tensor | PackedWeight | GpuWeight,
    first: int,
    count: int,
    out: Buffer,
) -> None:
    """As record_rows.embed. Raises InputError E-KERNEL-SHAPE for a weight whose inputs are not in
    order."""
    values = table if isinstance(table, torch.Tensor) else _table(table)
    program.record(
        lambda at: [
            moves.pick_rows(values, at.memory.tokens, at.rows(out), first=first, count=count)
        ]
    )


def _table(weight: PackedWeight | GpuWeight) -> torch.Tensor:
    """The values `[Np, at least K]` of a dense weight."""
    assert isinstance(weight, GpuWeight)
    gather = weight.gather
    if gather is not None and not torch.equal(gather[: weight.k].cpu(), torch.arange(weight.k)):
        raise InputError("E-KERNEL-SHAPE", "embed: the inputs of the table are not in order")
    return weight.data


def owned_rows(program: Recorder, gathered: Buffer, ends: Sequence[int], out: Buffer) -> None:
    """As record_rows.owned_rows."""
    there = torch.tensor(list(ends), device=program.device)
    program.record(
        lambda at: [moves.owned_rows(at.planes(gathered), at.memory.tokens, there, at.rows(out))]
    )


def join_columns(program: Recorder, gathered: Buffer, sizes: Sequence[int], out: Buffer) -> None:
    """As record_rows.join_columns."""
    begins = torch.tensor([0, *accumulate(sizes)], device=program.device)
    program.record(lambda at: [moves.join_columns(at.planes(gathered), begins, at.rows(out))])


def sampled_rows(program: Recorder, x: Buffer, out: Buffer) -> None:
    """As record_rows.sampled_rows."""

    def items(at: Bound) -> Sequence[Item]:
        table = at.rows(x)
        index = at.memory.sampled
        return [moves.pick_rows(table, index, at.rows(out), first=0, count=len(table))]

    program.record(items)


def last_row(program: Recorder, x: Buffer, out: torch.Tensor) -> None:
    """As record_rows.last_row."""

    def items(at: Bound) -> Sequence[Item]:
        table = at.rows(x)
        return [moves.pick_rows(table, at.memory.last, out[None], first=0, count=len(table))]

    program.record(items)


def collective(
    program: Recorder,
    call: Meeting,
    x: Buffer,
    out: Buffer,
    *,
    planes: bool,
    capturable: bool,
    first: Meeting | None = None,
    launches: Callable[[torch.Tensor, torch.Tensor], Sequence[Launch]] = lambda *_: (),
) -> None:
    """Record `call` with all rows of x and out, those beyond the step included: they are as many on
    every rank. `planes`: x has a dimension of planes, even of one. `first` and `launches` as those
    of a Call."""

    def items(at: Bound) -> Sequence[Item]:
        given = at.planes(x) if planes else at.rows(x)
        made = at.rows(out)
        return [
            Call(
                function=lambda: call(given, made),
                capturable=capturable,
                first=lambda: (first or call)(given, made),
                launches=lambda: launches(given, made),
            )
        ]

    program.record(items)


def read_out(
    program: Recorder, hidden: Buffer, normed: torch.Tensor, last: Buffer, logits: Buffer
) -> None:
    """As record_rows.read_out."""
    program.read_out(Spoken(hidden=hidden, normed=normed, last=last, logits=logits))
