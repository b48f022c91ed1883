"""What runs for ops on rows; tensors are checked and outputs are there."""

from __future__ import annotations

import torch

from ..step.kv_cache import KVCache
from .jit.rows import rms_norm_rows, rope_and_cache_rows, silu_mul_rows
from .launch import Launch, ceil_div, power_of_2

WIDE = 2048
SILU_BLOCK = 1024


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    out: torch.Tensor | None,
    *,
    add: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> Launch:
    """As ops.rms_norm; without `out` only add joins x."""
    rows, width = x.shape
    arguments = {
        "x": x,
        "add": add,
        "bias": bias,
        "weight": weight,
        "out": out,
        "width": width,
        "eps": eps,
        "BLOCK": max(power_of_2(width), 128),
    }
    warps = 8 if width > WIDE else 4
    return Launch(kernel=rms_norm_rows, grid=(rows,), arguments=arguments, warps=warps)


def silu_mul(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor) -> Launch:
    """As ops.silu_mul."""
    arguments = {"gate": gate, "up": up, "out": out, "size": out.numel(), "BLOCK": SILU_BLOCK}
    grid = (ceil_div(out.numel(), SILU_BLOCK),)
    return Launch(kernel=silu_mul_rows, grid=grid, arguments=arguments)


def rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    *,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: KVCache,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
) -> Launch:
    """As ops.rope_and_cache; out `[M, Hq * D]` in the dtype of the cache."""
    head = cache.head_size
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "cos": cos,
        "sin": sin,
        "positions": positions,
        "slots": slots,
        "q_norm": q_norm,
        "k_norm": k_norm,
        "out": out,
        "keys": cache.keys,
        "values": cache.values,
        "eps": eps,
        "q_heads": q.shape[1] // head,
        "kv_heads": cache.kv_heads,
        "D": head,
        "HALF": power_of_2(head // 2),
    }
    grid = (q.shape[0], q.shape[1] // head + cache.kv_heads)
    return Launch(kernel=rope_and_cache_rows, grid=grid, arguments=arguments, warps=1)
