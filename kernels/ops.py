"""Every op of the forward pass, one function each.

An op checks its arguments before anything runs and raises InputError E-KERNEL-SHAPE or
E-KERNEL-INDEX; a machine that cannot run it raises EnvironmentFault (see `backend`). In shapes:
M rows, K features in, N features out, S segments, H heads, D head size, I intermediate size.
The bits of a row depend on that row alone: not on M, on the other rows, or on threads.
Tensors on a CUDA device go to the Triton kernels of `gpu`, others to the compiled module.
"""

from __future__ import annotations

import torch

from .backend import backend, cuda
from .checks import CPU, NUMBERS, Checks
from .gpu.weight import GpuWeight
from .native import (
    available_isas,
    busy_seconds,
    external_seconds,
    native,
    set_isa,
    set_threads,
    threads,
)
from .program.readout import Outcome, digest, greatest
from .step.kv_cache import PAGE, KVCache
from .step.step import check_indices, check_pages
from .weights.native_weight import address, merged, native_weight
from .weights.weight import PackedWeight

__all__ = [
    "PAGE",
    "KVCache",
    "Outcome",
    "attention",
    "available_isas",
    "backend",
    "busy_seconds",
    "digest",
    "external_seconds",
    "greatest",
    "linear",
    "rms_norm",
    "rope_and_cache",
    "set_isa",
    "set_threads",
    "silu_mul",
    "threads",
]


def linear(
    x: torch.Tensor, weight: PackedWeight | GpuWeight, merges: torch.Tensor | None = None
) -> torch.Tensor:
    """Partial products of every segment: x `[M, K]` (fp32, fp16, bf16) gives fp32 `[S, M, N]`.

    With merges, int32 `[S]`, segments are added up on the way: after segment i the last two sums
    become one, merges[i] times, earlier + later in fp32. What is left, in order, is the output.

    Within a run x * (code - zero) is summed in fp32 in the order of k; run by run that sum is
    scaled and added. A segment without runs gives +0.

    A weight whose activation is "int8" has x quantized first, in fp32: a segment's part of a row
    is divided by its scale xs = absmax / 127 (1 for zeros) or input_scale, rounded half to even
    and clamped to -128..127. Then float(sum(q * (code - 128))) * xs * scale, where the sum is
    exact: here all instruction sets agree bit by bit. A part with a NaN or an infinity gives NaN.
    """
    checks = Checks("linear", x.device)
    checks.tensor("x", x, (None, weight.k))
    checks.that(weight.data.device == x.device, f"the weight is on {weight.data.device}")
    if merges is not None:
        checks.tensor("merges", merges, (weight.segments,), torch.int32, on=CPU)
    checks.done()
    if isinstance(weight, GpuWeight):
        return cuda().linear(x, weight, merges)
    rows = x.shape[0]
    left = weight.segments if merges is None else merged(merges)
    out = torch.empty(left, rows, weight.n)
    if out.numel():
        native().linear(
            native_weight(weight),
            x.data_ptr(),
            NUMBERS[x.dtype],
            rows,
            address(merges),
            out.data_ptr(),
        )
    return out


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype,
    *,
    add: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x fp32 `[M, D]` over its root mean square, times weight `[D]`; fp32 until one rounding.

    With add fp32 `[M, D]`, in place and in fp32: add becomes add + bias (fp32 `[D]`, if given), x
    becomes x + add, and that x is normalized.
    """
    checks = Checks("rms_norm", x.device)
    checks.tensor("x", x, (None, None), torch.float32)
    checks.tensor("weight", weight, (x.shape[-1] if x.dim() else None,))
    checks.that(out_dtype in NUMBERS, f"out_dtype {out_dtype} is not a supported float")
    if add is not None:
        checks.tensor("add", add, tuple(x.shape), torch.float32)
    if bias is not None:
        checks.tensor("bias", bias, (x.shape[-1],), torch.float32)
        checks.that(add is not None, "a bias goes with add")
    checks.done()
    if x.is_cuda:
        return cuda().rms_norm(x, weight, eps, out_dtype, add=add, bias=bias)
    out = torch.empty(x.shape, dtype=out_dtype)
    if out.numel():
        native().rms_norm(
            x.data_ptr(),
            address(add),
            address(bias),
            weight.data_ptr(),
            NUMBERS[weight.dtype],
            eps,
            x.shape[0],
            x.shape[1],
            out.data_ptr(),
            NUMBERS[out_dtype],
        )
    return out


def silu_mul(gate: torch.Tensor, up: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """silu(gate) * up of fp32 `[M, I]`, rounded once."""
    checks = Checks("silu_mul", gate.device)
    checks.tensor("gate", gate, (None, None), torch.float32)
    checks.tensor("up", up, tuple(gate.shape), torch.float32)
    checks.that(out_dtype in NUMBERS, f"out_dtype {out_dtype} is not a supported float")
    checks.done()
    if gate.is_cuda:
        return cuda().silu_mul(gate, up, out_dtype)
    out = torch.empty(gate.shape, dtype=out_dtype)
    if out.numel():
        native().silu_mul(
            gate.data_ptr(),
            up.data_ptr(),
            gate.shape[0],
            gate.shape[1],
            out.data_ptr(),
            NUMBERS[out_dtype],
        )
    return out


def rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: KVCache,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Turns q and k by their positions, writes k and v into the cache, returns q `[M, Hq, D]`.

    q fp32 `[M, Hq*D]`; k, v fp32 `[M, Hkv*D]`; cos, sin fp32 `[P, D/2]`; positions int32 `[M]`;
    slots int64 `[M]`, each page * 64 + offset. q_norm and k_norm `[D]`, both or neither, ask for an
    RMS norm of every head first. fp32 until one rounding to the dtype of the cache.
    """
    head = cache.head_size
    rows = q.shape[0] if q.dim() else 0
    checks = Checks("rope_and_cache", q.device)
    checks.that(head % 2 == 0, f"head size {head} is odd")
    checks.tensor("q", q, (rows, None), torch.float32)
    checks.that(not head or q.shape[-1] % head == 0, f"q is not whole heads of {head}")
    for name, tensor in (("k", k), ("v", v)):
        checks.tensor(name, tensor, (rows, cache.kv_heads * head), torch.float32)
    for name, tensor in (("cos", cos), ("sin", sin)):
        checks.tensor(name, tensor, (cos.shape[0], head // 2), torch.float32)
    checks.tensor("positions", positions, (rows,), torch.int32)
    checks.tensor("slots", slots, (rows,), torch.int64)
    checks.that((q_norm is None) == (k_norm is None), "q_norm and k_norm come together")
    if q_norm is not None and k_norm is not None:
        checks.tensor("q_norm", q_norm, (head,))
        checks.tensor("k_norm", k_norm, (head,), q_norm.dtype)
    checks.done()
    if q.is_cuda:
        return cuda().rope_and_cache(
            q, k, v, cos, sin, positions, slots, cache, q_norm, k_norm, eps
        )
    q_heads = q.shape[1] // head if head else 0
    out = torch.empty(rows, q_heads, head, dtype=cache.dtype)
    if not rows or not head:
        return out
    module = native()
    check_indices("rope_and_cache: positions", positions, cos.shape[0])
    check_indices("rope_and_cache: slots", slots, cache.pages * PAGE)
    module.rope_and_cache(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        address(q_norm),
        address(k_norm),
        0 if q_norm is None else NUMBERS[q_norm.dtype],
        eps,
        rows,
        q_heads,
        cache.kv_heads,
        head,
        cache.keys.data_ptr(),
        cache.values.data_ptr(),
        out.data_ptr(),
        NUMBERS[cache.dtype],
    )
    return out


def attention(
    q: torch.Tensor,
    cache: KVCache,
    *,
    block_tables: torch.Tensor,
    row_sequence: torch.Tensor,
    positions: torch.Tensor,
    head_to_kv: torch.Tensor,
    scale: float,
    window: int = 0,
) -> torch.Tensor:
    """Causal attention over the cache: q `[M, Hq, D]` in its dtype gives `[M, Hq*D]`.

    Row m reads keys 0..positions[m] of sequence row_sequence[m] (with a window only those after
    positions[m] - window), 64 at a time at absolute positions. block_tables int32 `[B, pages]`;
    row_sequence, positions int32 `[M]`; head_to_kv int32 `[Hq]`, the KV head of every query head.
    """
    rows, heads = (q.shape[0], q.shape[1]) if q.dim() == 3 else (0, 0)
    checks = Checks("attention", q.device)
    checks.tensor("q", q, (None, None, cache.head_size), cache.dtype)
    checks.tensor("block_tables", block_tables, (None, None), torch.int32)
    checks.tensor("row_sequence", row_sequence, (rows,), torch.int32)
    checks.tensor("positions", positions, (rows,), torch.int32)
    checks.tensor("head_to_kv", head_to_kv, (heads,), torch.int32)
    checks.that(window >= 0, f"window is {window}; 0 stands for none")
    checks.done()
    if q.is_cuda:
        step = (block_tables, row_sequence, positions)
        return cuda().attention(q, cache, *step, head_to_kv, scale, window)
    out = torch.empty(rows, heads * cache.head_size, dtype=q.dtype)
    if out.numel() == 0:
        return out
    module = native()
    check_indices("attention: row_sequence", row_sequence, len(block_tables))
    check_indices("attention: head_to_kv", head_to_kv, cache.kv_heads)
    check_pages("attention", block_tables, row_sequence, positions, window, cache.pages)
    module.attention(
        q.data_ptr(),
        cache.keys.data_ptr(),
        cache.values.data_ptr(),
        NUMBERS[q.dtype],
        block_tables.data_ptr(),
        block_tables.shape[1],
        row_sequence.data_ptr(),
        positions.data_ptr(),
        head_to_kv.data_ptr(),
        scale,
        window,
        rows,
        heads,
        cache.kv_heads,
        cache.head_size,
        out.data_ptr(),
    )
    return out
