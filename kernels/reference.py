"""The same ops in plain torch and float64: an oracle for tests and the doctor, never a fallback."""

from __future__ import annotations

import torch

from .cache import PAGE, KVCache
from .layout import unpack
from .weight import MIDDLE, PackedWeight


def dense_segments(weight: PackedWeight) -> torch.Tensor:
    """The weight as float64 `[S, N, K]`, each segment zero outside its part of K."""
    values, scales, zeros = unpack(weight)
    full = values.double()
    out = full.new_zeros(weight.segments, weight.n, weight.k)
    source = torch.arange(weight.k) if weight.gather is None else weight.gather.long()
    for segment in range(weight.segments):
        first, last = weight.segment_offsets[segment : segment + 2].tolist()
        for run in range(first, last):
            begin, end = weight.run_offsets[run : run + 2].tolist()
            index = source[begin:end]
            index = index[index >= 0]
            part = full[:, index]
            if scales is not None:
                zero = MIDDLE[weight.kind] if zeros is None else zeros[:, run : run + 1].double()
                part = (part - zero) * scales[:, run : run + 1].double()
            out[segment][:, index] = part
    return out


def linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """x `[M, K]` gives float64 `[S, M, N]`."""
    return x.double() @ dense_segments(weight).transpose(1, 2)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x `[..., D]` and weight `[D]` give float64 `[..., D]`."""
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.double()


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate and up `[M, I]` give float64 `[M, I]`."""
    return torch.nn.functional.silu(gate.double()) * up.double()


def rope(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """x `[M, H, D]`, cos and sin `[P, D/2]`, positions `[M]` give float64 `[M, H, D]`."""
    low, high = x.double().chunk(2, dim=-1)
    c, s = (table.double()[positions.long()].unsqueeze(1) for table in (cos, sin))
    return torch.cat([low * c - high * s, high * c + low * s], dim=-1)


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
    """Arguments as `ops.attention`; float64 `[M, Hq*D]`."""
    rows, heads, head = q.shape
    out = torch.empty(rows, heads, head, dtype=torch.float64)
    for row in range(rows):
        position = int(positions[row])
        begin = max(0, position + 1 - window) if window else 0
        index = torch.arange(begin, position + 1)
        pages = block_tables[int(row_sequence[row])].long()[index // PAGE]
        for h in range(heads):
            kv = int(head_to_kv[h])
            keys = cache.keys[pages, kv, :, index % PAGE].double()
            values = cache.values[pages, kv, index % PAGE].double()
            weights = torch.softmax(keys @ q[row, h].double() * scale, dim=0)
            out[row, h] = weights @ values
    return out.flatten(1)
