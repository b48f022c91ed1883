"""Recording the ops of the forward pass into a program; each does what `ops` says of its name.

In shapes: T rows of a step (L sampled rows after `Program.use_sampled_rows`), K, N, W widths. All
raise InputError E-KERNEL-SHAPE when buffers, weights and tables do not fit each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..checks import CPU, NUMBERS, Checks
from ..gpu.weight import GpuWeight
from ..step.buffer import Buffer
from ..step.kv_cache import KVCache
from ..weights.native_weight import address, merged, native_weight
from ..weights.weight import PackedWeight
from .program import AnyProgram, Program


def linear(
    program: AnyProgram,
    x: Buffer,
    weights: Sequence[PackedWeight] | Sequence[GpuWeight],
    outs: Sequence[Buffer],
    *,
    merges: torch.Tensor | None = None,
    biases: Sequence[torch.Tensor | None] = (),
) -> None:
    """Several products of x `[T, K]`, side by side; biases fp32 `[N]` are added at the end.

    An out is fp32 `[sums, T, W]` with W at least N: as many sums as merges leave, or segments.
    """
    biases = biases or [None] * len(weights)
    checks = Checks("linear", program.device)
    form = PackedWeight if isinstance(program, Program) else GpuWeight
    for weight, out, bias in zip(weights, outs, biases, strict=True):
        planes = weight.segments if merges is None else merged(merges)
        checks.that(isinstance(weight, form), f"a weight is no {form.__name__}")
        checks.that(x.width == weight.k, f"x is {x.width} wide, the weight takes {weight.k}")
        fits = out.planes == planes and out.width >= weight.n and out.dtype == torch.float32
        checks.that(
            fits,
            f"out is {out.dtype} [{out.planes}, *, {out.width}]; it must be float32 "
            f"[{planes}, *, {weight.n} or more]",
        )
        if merges is not None:
            checks.tensor("merges", merges, (weight.segments,), torch.int32, on=CPU)
        if bias is not None:
            checks.tensor("bias", bias, (weight.n,), torch.float32)
    checks.done()
    if not isinstance(program, Program):
        program.gpu.linear(program, x, weights, outs, merges, biases)
        return
    jobs = [
        (weight, out, bias)
        for weight, out, bias in zip(weights, outs, biases, strict=True)
        if isinstance(weight, PackedWeight) and weight.n
    ]
    if jobs:
        op = program.native.linears(
            x.id,
            NUMBERS[x.dtype],
            [native_weight(weight) for weight, _, _ in jobs],
            address(merges),
            [address(bias) for _, _, bias in jobs],
            [out.id for _, out, _ in jobs],
            [out.width for _, out, _ in jobs],
        )
        program.recorded(op, merges, *weights, *biases)


def rms_norm(
    program: AnyProgram,
    x: Buffer,
    weight: torch.Tensor,
    eps: float,
    out: Buffer,
    *,
    add: Buffer | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """As ops.rms_norm."""
    checks = Checks("rms_norm", program.device)
    checks.that(x.dtype == torch.float32, f"x is {x.dtype}; it must be float32")
    checks.that(x.width == out.width, f"x is {x.width} wide, out {out.width}")
    checks.tensor("weight", weight, (x.width,))
    checks.done()
    _rms_norm(program, x, add, bias, weight, eps, out)


def add(program: AnyProgram, x: Buffer, add: Buffer, bias: torch.Tensor | None) -> None:
    """add becomes add + bias, then x becomes x + add, in float32."""
    _rms_norm(program, x, add, bias, None, 0.0, None)


def _rms_norm(
    program: AnyProgram,
    x: Buffer,
    add: Buffer | None,
    bias: torch.Tensor | None,
    weight: torch.Tensor | None,
    eps: float,
    out: Buffer | None,
) -> None:
    checks = Checks("rms_norm", program.device)
    if add is not None:
        fits = add.dtype == torch.float32 and (add.planes, add.width) == (1, x.width)
        checks.that(fits, f"add is {add.dtype} [{add.planes}, *, {add.width}], unlike x")
    if bias is not None:
        checks.tensor("bias", bias, (x.width,), torch.float32)
        checks.that(add is not None, "a bias goes with add")
    checks.done()
    if not isinstance(program, Program):
        program.gpu.rms_norm(program, x, add, bias, weight, eps, out)
        return
    op = program.native.rms_norm(
        x.id,
        -1 if add is None else add.id,
        address(bias),
        address(weight),
        0 if weight is None else NUMBERS[weight.dtype],
        eps,
        x.width,
        -1 if out is None else out.id,
        0 if out is None else NUMBERS[out.dtype],
    )
    program.recorded(op, bias, weight)


def silu_mul(program: AnyProgram, gate: Buffer, up: Buffer, out: Buffer) -> None:
    """As ops.silu_mul."""
    checks = Checks("silu_mul", program.device)
    for name, buffer in (("gate", gate), ("up", up)):
        fits = buffer.dtype == torch.float32 and buffer.width == out.width
        checks.that(fits, f"{name} is {buffer.dtype} [*, {buffer.width}]; out [*, {out.width}]")
    checks.done()
    if not isinstance(program, Program):
        program.gpu.silu_mul(program, gate, up, out)
        return
    program.recorded(program.native.silu_mul(gate.id, up.id, out.width, out.id, NUMBERS[out.dtype]))


def rope_and_cache(
    program: AnyProgram,
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
    """As ops.rope_and_cache; out `[T, Hq * D]` in the cache's dtype."""
    head, checks = cache.head_size, Checks("rope_and_cache", program.device)
    checks.that(head % 2 == 0, f"head size {head} is odd")
    checks.that(q.width == out.width and q.width % head == 0, f"q is {q.width} wide")
    for name, buffer in (("k", k), ("v", v)):
        wanted = cache.kv_heads * head
        checks.that(buffer.width == wanted, f"{name} is {buffer.width} wide, not {wanted}")
    checks.that(out.dtype == cache.dtype, f"out is {out.dtype}, the cache {cache.dtype}")
    positions = program.limits.positions
    for name, table in (("cos", cos), ("sin", sin)):
        checks.tensor(name, table, (positions, head // 2), torch.float32)
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        if norm is not None:
            checks.tensor(name, norm, (head,))
    checks.that((q_norm is None) == (k_norm is None), "q_norm and k_norm come together")
    checks.that(cache.pages == program.limits.pages, f"the cache has {cache.pages} pages")
    checks.done()
    if not q.width:
        return
    if not isinstance(program, Program):
        program.gpu.rope_and_cache(
            program, q, k, v, out, cos=cos, sin=sin, cache=cache, q_norm=q_norm, k_norm=k_norm,
            eps=eps,
        )  # fmt: skip
        return
    op = program.native.rope_and_cache(
        q.id,
        k.id,
        v.id,
        cos.data_ptr(),
        sin.data_ptr(),
        address(q_norm),
        address(k_norm),
        0 if q_norm is None else NUMBERS[q_norm.dtype],
        eps,
        q.width // head,
        cache.kv_heads,
        head,
        cache.keys.data_ptr(),
        cache.values.data_ptr(),
        out.id,
        NUMBERS[cache.dtype],
    )
    program.recorded(op, cos, sin, cache, q_norm, k_norm)


def attention(
    program: AnyProgram,
    q: Buffer,
    cache: KVCache,
    out: Buffer,
    *,
    head_to_kv: torch.Tensor,
    scale: float,
    window: int,
) -> None:
    """As ops.attention: q and out `[T, Hq * D]` in the cache's dtype."""
    heads, checks = q.width // cache.head_size, Checks("attention", program.device)
    checks.tensor("head_to_kv", head_to_kv, (heads,), torch.int32, on=CPU)
    inside = not heads or 0 <= int(head_to_kv.min()) <= int(head_to_kv.max()) < cache.kv_heads
    checks.that(inside, f"head_to_kv names heads that the cache lacks: {head_to_kv.tolist()}")
    checks.that(q.dtype == out.dtype == cache.dtype, f"q is {q.dtype}, out {out.dtype}")
    checks.that(q.width == out.width, f"q is {q.width} wide, out {out.width}")
    checks.that(window >= 0, f"window is {window}; 0 stands for none")
    checks.done()
    if not q.width:
        return
    if not isinstance(program, Program):
        program.gpu.attention(
            program, q, cache, out, head_to_kv=head_to_kv, scale=scale, window=window
        )
        return
    op = program.native.attention(
        q.id,
        cache.keys.data_ptr(),
        cache.values.data_ptr(),
        NUMBERS[cache.dtype],
        head_to_kv.data_ptr(),
        scale,
        window,
        heads,
        cache.kv_heads,
        cache.head_size,
        out.id,
    )
    program.recorded(op, cache, head_to_kv)
