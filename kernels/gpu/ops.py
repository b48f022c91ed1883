"""The ops of `kernels.ops` for tensors on a CUDA device. Their arguments have been checked."""

from __future__ import annotations

import functools
import logging

import torch
import triton

from isobit.errors import InputError

from ..step.kv_cache import PAGE, KVCache
from ..step.step import check_indices, check_pages
from . import reductions, rows
from .architecture import architecture_of
from .attention import Heads, attention_work, plan_chunks
from .launch import run_all
from .linear import HALVES, check_dtypes, product_work, tree_nodes
from .weight import GpuWeight

log = logging.getLogger(__name__)


def describe(device: torch.device) -> dict[str, str]:
    """As ops.backend. Raises EnvironmentFault E-KERNEL-ARCH for a card without kernels."""
    found = architecture_of(device)
    return {
        "device": "cuda",
        "isa": found.name,
        "card": torch.cuda.get_device_name(device),
        "triton": triton.__version__,
        "reason": f"Triton kernels with the configurations of {found.name} ({found.cards})",
    }


@functools.cache
def _announce(device: torch.device) -> None:
    if device.type == "cuda":
        log.info("kernels: %s", describe(device))


def linear(x: torch.Tensor, weight: GpuWeight, merges: torch.Tensor | None) -> torch.Tensor:
    """As ops.linear: x `[M, K]` in bf16 or fp16 gives fp32 `[S, M, N]`.

    Raises InputError E-KERNEL-DTYPE for other activations, and where a dense weight differs.
    """
    _announce(x.device)
    check_dtypes(x.dtype, weight)
    nodes = None if merges is None else tree_nodes(merges.tolist())
    planes = weight.segments if nodes is None else len(nodes)
    out = torch.empty(planes, x.shape[0], weight.n, dtype=torch.float32, device=x.device)
    if out.numel():
        run_all(product_work(x, weight, out, nodes).launches)
    return out


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out_dtype: torch.dtype,
    *,
    add: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """As ops.rms_norm."""
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    if out.numel():
        rows.rms_norm(x, weight, eps, out, add=add, bias=bias).run()
    return out


def silu_mul(gate: torch.Tensor, up: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    """As ops.silu_mul."""
    out = torch.empty(gate.shape, dtype=out_dtype, device=gate.device)
    rows.silu_mul(gate, up, out).run()
    return out


def rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: KVCache,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """As ops.rope_and_cache. Waits for the device: indices are checked on the CPU."""
    head = cache.head_size
    out = torch.empty(
        q.shape[0], q.shape[1] // head if head else 0, head, dtype=cache.dtype, device=q.device
    )
    if not q.shape[0] or not head:
        return out
    check_indices("rope_and_cache: positions", positions.cpu(), cos.shape[0])
    check_indices("rope_and_cache: slots", slots.cpu(), cache.pages * PAGE)
    rows.rope_and_cache(
        q, k, v, out, cos=cos, sin=sin, positions=positions, slots=slots, cache=cache,
        q_norm=q_norm, k_norm=k_norm, eps=eps,
    ).run()  # fmt: skip
    return out


def attention(
    q: torch.Tensor,
    cache: KVCache,
    block_tables: torch.Tensor,
    row_sequence: torch.Tensor,
    positions: torch.Tensor,
    head_to_kv: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """As ops.attention; q is bf16 or fp16. Waits for the device: indices are checked on the CPU.

    Where values of later tokens hold an infinity or a NaN, so may rows of the same sequence before
    them in the same call. Raises InputError E-KERNEL-DTYPE.
    """
    if q.dtype not in HALVES:
        raise InputError(
            "E-KERNEL-DTYPE",
            f"attention: q is {q.dtype}; the CUDA kernels take bfloat16 and float16",
        )
    out = torch.empty(q.shape[0], q.shape[1] * q.shape[2], dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    tables, sequence, places = block_tables.cpu(), row_sequence.cpu(), positions.cpu()
    check_indices("attention: row_sequence", sequence, len(tables))
    check_pages("attention", tables, sequence, places, window, cache.pages)
    heads = Heads.of(head_to_kv.tolist(), cache.kv_heads, q.device, cache.head_size)
    work = attention_work(
        q, cache, out, block_tables=block_tables, row_sequence=row_sequence, positions=positions,
        heads=heads, chunks=plan_chunks(sequence, places, heads, q.device), scale=scale,
        window=window,
    )  # fmt: skip
    run_all(work.launches)
    return out


def greatest(x: torch.Tensor) -> list[int]:
    """As ops.greatest."""
    out = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    reductions.greatest(x, out).run()
    return out.tolist()


def digest(tensor: torch.Tensor, seed: int) -> int:
    """64 bits over a contiguous tensor, as ops.digest; not the bits that the CPU gives."""
    sums = torch.empty(reductions.digest_blocks(tensor), dtype=torch.int64, device=tensor.device)
    if tensor.numel():
        reductions.digest(tensor, seed, sums).run()
    return reductions.digest_value(int(sums.sum()), tensor.nbytes, seed)
