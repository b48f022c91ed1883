"""RMS norm, silu * up and rotary embedding against float64, and their bits."""

from __future__ import annotations

import pytest
import torch

from isobit.errors import InputError
from isobit.kernels import ops, reference

EPS = 1e-6


def rounding(dtype: torch.dtype) -> float:
    """Half a unit in the last place of the output, and some fp32 roundings before it."""
    return torch.finfo(dtype).eps / 2 + 16 * 2.0**-24


def close(out: torch.Tensor, exact: torch.Tensor, floor: float = 0.0) -> None:
    error = (out.double() - exact).abs()
    tiny = torch.finfo(out.dtype).smallest_normal * torch.finfo(out.dtype).eps
    assert (error <= rounding(out.dtype) * exact.abs() + floor + tiny).all()


@pytest.mark.parametrize(("m", "d"), [(1, 1), (3, 64), (2, 5120), (5, 83)])
@pytest.mark.usefixtures("isa")
def test_rms_norm(dtype: torch.dtype, m: int, d: int) -> None:
    x = torch.randn(m, d) * 30
    weight = torch.randn(d).to(dtype)
    out = ops.rms_norm(x, weight, EPS, dtype)
    assert out.dtype == dtype
    close(out, reference.rms_norm(x, weight, EPS))
    assert torch.equal(ops.rms_norm(x[-1:].contiguous(), weight, EPS, dtype), out[-1:])


@pytest.mark.usefixtures("isa")
def test_rms_norm_of_zeros_is_zero() -> None:
    assert ops.rms_norm(torch.zeros(2, 20), torch.ones(20), EPS, torch.float32).eq(0).all()


@pytest.mark.parametrize(("m", "i"), [(1, 1), (3, 37), (2, 640)])
@pytest.mark.usefixtures("isa")
def test_silu_mul(dtype: torch.dtype, m: int, i: int) -> None:
    gate, up = torch.randn(m, i) * 8, torch.randn(m, i)
    close(ops.silu_mul(gate, up, dtype), reference.silu_mul(gate, up))


@pytest.mark.usefixtures("isa")
def test_silu_over_the_whole_range() -> None:
    gate = torch.linspace(-110, 110, 220_001).unsqueeze(0)
    out = ops.silu_mul(gate, torch.ones_like(gate), torch.float32)
    # Below -87 the quotient has a denormal or infinite denominator: an absolute floor covers it.
    close(out, reference.silu_mul(gate, torch.ones_like(gate)), floor=1e-36)
    ends = torch.tensor([[float("-inf"), float("inf"), float("nan"), 0.0, -0.0]])
    out = ops.silu_mul(ends, torch.ones_like(ends), torch.float32)
    assert out[0, 1] == float("inf") and out[0, [0, 2]].isnan().all() and out[0, 3:].eq(0).all()


@pytest.mark.usefixtures("isa")
def test_every_lane_and_tail_has_the_same_bits() -> None:
    values = torch.randn(97) * 5
    ones = torch.ones(1, 97)
    for value in values[:20]:
        out = ops.silu_mul(ones * value, ones, torch.float32)
        assert out.view(torch.int32).unique().numel() == 1
    whole = ops.silu_mul(values.unsqueeze(0), ones, torch.float32)
    for cut in (1, 15, 16, 17, 96):
        part = ops.silu_mul(values[:cut].unsqueeze(0), ones[:, :cut].contiguous(), torch.float32)
        assert torch.equal(part, whole[:, :cut])


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("isa")
def test_rounding_is_to_nearest_even(to: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (1, 200_000)).to(torch.int32)
    ties = torch.arange(-(2**15), 2**15).to(torch.int32).unsqueeze(0) * 2**16 + 2**15
    small = torch.linspace(-1e-4, 1e-4, 100_001).unsqueeze(0)
    for values in (bits.view(torch.float32), ties.view(torch.float32), small):
        values = values[values.abs() < 1e36].unsqueeze(0)
        # silu(64) is exactly 64, and scaling by a power of two is exact above the denormals.
        values = torch.where(values.abs() < 1e-36, 0.0, values)
        out = ops.silu_mul(torch.full_like(values, 64.0), values / 64, to)
        assert torch.equal(out, values.to(to))


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("head", [2, 64, 80, 128])
@pytest.mark.usefixtures("isa")
def test_rope_and_cache(dtype: torch.dtype, head: int, normed: bool) -> None:
    m, q_heads, kv_heads, pages = 5, 3, 2, 4
    q = torch.randn(m, q_heads * head)
    k, v = torch.randn(2, m, kv_heads * head)
    angles = torch.outer(torch.arange(100.0), 10_000 ** -(torch.arange(head // 2) / head))
    cos, sin = angles.cos(), angles.sin()
    positions = torch.tensor([0, 99, 3, 4, 50], dtype=torch.int32)
    slots = torch.tensor([255, 0, 64, 63, 130])
    norms = [torch.rand(head).to(dtype) + 0.5 for _ in range(2)] if normed else [None, None]
    cache = ops.KVCache.allocate(pages, kv_heads, head, dtype)
    out = ops.rope_and_cache(
        q,
        k,
        v,
        cos=cos,
        sin=sin,
        positions=positions,
        slots=slots,
        cache=cache,
        q_norm=norms[0],
        k_norm=norms[1],
        eps=EPS,
    )
    turned = []
    for x, norm in ((q, norms[0]), (k, norms[1])):
        heads = x.view(m, -1, head)
        heads = heads if norm is None else reference.rms_norm(heads, norm, EPS)
        turned.append(reference.rope(heads, cos, sin, positions))
    # Two products may cancel: the error is relative to them, not to their difference.
    floor = 8 * 2.0**-24 * max(float(t.abs().max()) for t in turned)
    close(out, turned[0], floor)
    close(cache.keys[slots // 64, :, :, slots % 64], turned[1], floor)
    assert torch.equal(cache.values[slots // 64, :, slots % 64], v.view(m, -1, head).to(dtype))
    untouched = torch.ones(pages * 64, dtype=torch.bool)
    untouched[slots] = False
    assert cache.values.transpose(1, 2).flatten(0, 1)[untouched].isnan().all()
    assert cache.keys.permute(0, 3, 1, 2).flatten(0, 1)[untouched].isnan().all()


def test_bad_rows_are_named() -> None:
    cache = ops.KVCache.allocate(1, 1, 4, torch.float32)
    table = torch.ones(8, 2)
    x = torch.ones(2, 4)
    given: dict = {
        "cos": table,
        "sin": table,
        "positions": torch.tensor([0, 1], dtype=torch.int32),
        "slots": torch.tensor([0, 1]),
        "cache": cache,
    }
    ops.rope_and_cache(x, x, x, **given)
    for change, message in (
        ({"positions": torch.tensor([0, 8], dtype=torch.int32)}, r"INDEX.*positions\[1\] is 8"),
        ({"slots": torch.tensor([-1, 1])}, r"INDEX.*slots\[0\] is -1"),
        ({"slots": torch.tensor([0, 64])}, r"INDEX.*slots\[1\] is 64"),
        ({"sin": table[:4]}, "SHAPE rope_and_cache: sin"),
        ({"q_norm": torch.ones(4)}, "SHAPE.*come together"),
        ({"slots": torch.tensor([0])}, "SHAPE.*slots"),
    ):
        with pytest.raises(InputError, match=message):
            ops.rope_and_cache(x, x, x, **(given | change))
    with pytest.raises(InputError, match="rms_norm: weight"):
        ops.rms_norm(x, torch.ones(3), EPS, torch.float32)
    with pytest.raises(InputError, match=r"silu_mul: up(.|\n)*out_dtype"):
        ops.silu_mul(x, torch.ones(2, 3), torch.float64)
    with pytest.raises(InputError, match="E-KERNEL-CACHE"):
        ops.KVCache(torch.ones(1, 1, 4, 64), torch.ones(1, 1, 4, 64))


@pytest.mark.usefixtures("isa")
def test_a_root_and_its_bias_join_the_residual_before_the_norm(dtype: torch.dtype) -> None:
    x, add = torch.randn(3, 83), torch.randn(3, 83)
    bias, weight = torch.randn(83), torch.randn(83)
    root = add + bias
    joined = x + root
    out = ops.rms_norm(x, weight, EPS, dtype, add=add, bias=bias)
    assert torch.equal(add, root)
    assert torch.equal(x, joined)
    assert torch.equal(out, ops.rms_norm(joined, weight, EPS, dtype))
