"""The same ops in plain torch and float64: an oracle for tests and the doctor, never a fallback."""

from __future__ import annotations

import torch

from .step.kv_cache import PAGE, KVCache
from .weights.layout import unpack
from .weights.weight import MIDDLE, PackedWeight


def dense_segments(weight: PackedWeight) -> torch.Tensor:
    """The weight as float64 `[S, N, K]`, each segment zero outside its part of K."""
    values, scales, zeros = unpack(weight)
    full = values.double()
    out = full.new_zeros(weight.segments, weight.n, weight.k)
    for segment in range(weight.segments):
        first, last = weight.segment_offsets[segment : segment + 2].tolist()
        for run in range(first, last):
            index = _features(weight, run)
            part = full[:, index]
            if scales is not None:
                zero = MIDDLE[weight.kind] if zeros is None else zeros[:, run : run + 1].double()
                part = (part - zero) * scales[:, run : run + 1].double()
            out[segment][:, index] = part
    return out


def dense(weight: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight as float64 `[N, K]`, and the segment of each k, int64 `[K]`; -1 where in none."""
    values, scales, zeros = unpack(weight)
    run_of, segment_of = (torch.full((weight.k,), -1) for _ in range(2))
    for segment in range(weight.segments):
        first, last = weight.segment_offsets[segment : segment + 2].tolist()
        for run in range(first, last):
            index = _features(weight, run)
            run_of[index], segment_of[index] = run, segment
    full = values.double()
    if scales is not None:
        zero = MIDDLE[weight.kind] if zeros is None else zeros[:, run_of].double()
        full = (full - zero) * scales[:, run_of].double()
    return full * (segment_of >= 0), segment_of


def activations(row: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """What a weight is multiplied by, float64 `[K]`, for a row `[1, K]`: int8 codes are scaled."""
    if weight.activation != "int8":
        return row[0].double()
    out = torch.zeros(weight.k, dtype=torch.float64)
    for run in range(weight.runs):
        index = _features(weight, run)
        codes, scales = quantize(row[:, index], weight.input_scale)
        out[index] = codes[0].double() * scales.double()
    return out


def linear(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """x `[M, K]` gives float64 `[S, M, N]`."""
    if weight.activation == "int8":
        return _linear_int8(x, weight)
    return x.double() @ dense_segments(weight).transpose(1, 2)


def quantize(
    x: torch.Tensor, input_scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x `[M, K]` of one segment gives codes int64 `[M, K]` and scales fp32 `[M]`.

    scale = absmax / 127 or input_scale, code = x / scale rounded half to even, in fp32. With a
    static scale codes reach from -128 to 127, as in compressed-tensors; with a dynamic one from
    -127 to 127 (kernels/cpu/linear/quantize.h). A row with a NaN or an infinity gets zeros and
    the scale NaN.
    """
    x = x.float()
    finite = x.isfinite().all(1)
    x = torch.where(finite.unsqueeze(1), x, 0)
    if input_scale is None:
        scales = x.abs().amax(1) / 127 if x.shape[1] else x.new_zeros(len(x))
    else:
        scales = x.new_full((len(x),), input_scale)
    scales = torch.where(scales == 0, 1, scales)
    codes = torch.round(x / scales.unsqueeze(1)).clamp(-128, 127).long()
    return codes, torch.where(finite, scales, torch.nan)


def _linear_int8(x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    codes, scales, _ = unpack(weight)
    assert scales is not None
    integers = codes.long() - MIDDLE["int8"]
    out = torch.zeros(weight.segments, len(x), weight.n, dtype=torch.float64)
    for segment in range(weight.segments):
        first, last = weight.segment_offsets[segment : segment + 2].tolist()
        for run in range(first, last):
            index = _features(weight, run)
            q, x_scales = quantize(x[:, index], weight.input_scale)
            total = (q @ integers[:, index].T).double()
            out[segment] = total * x_scales.double().unsqueeze(1) * scales[:, run].double()
    return out


def _features(weight: PackedWeight, run: int) -> torch.Tensor:
    """The activations of a run, int64."""
    begin, end = weight.run_offsets[run : run + 2].tolist()
    if weight.gather is None:
        return torch.arange(begin, end)
    index = weight.gather[begin:end].long()
    return index[index >= 0]


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
