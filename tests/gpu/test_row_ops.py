"""Ops on rows against float64, and against the CPU where bits are the same."""

from __future__ import annotations

import pytest
import torch

from isobit.kernels import ops, reference
from isobit.kernels.gpu import reductions, rows

DTYPES = [torch.bfloat16, torch.float16]
HALF_STEP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
MASK = (1 << 64) - 1


def close(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Within one rounding to the dtype, and a few to fp32 on the way."""
    error = (found.cpu().double() - exact).abs()
    # fp16 has a smallest number, 2^-24, below which rounding is absolute.
    assert (error <= (HALF_STEP[found.dtype] + 2.0**-20) * exact.abs() + 2.0**-24).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 200, 2050])
def test_rms_norm(width: int, dtype: torch.dtype, device: str) -> None:
    x, weight = torch.randn(3, width), torch.randn(width).to(dtype)
    out = torch.full((3, width), torch.nan, dtype=dtype, device=device)
    rows.rms_norm(x.to(device), weight.to(device), 1e-5, out).run()
    close(out, reference.rms_norm(x, weight, 1e-5))
    alone = torch.empty(1, width, dtype=dtype, device=device)
    rows.rms_norm(x[2:].to(device), weight.to(device), 1e-5, alone).run()
    assert torch.equal(alone[0], out[2])


@pytest.mark.parametrize("biased", [False, True])
def test_residual(biased: bool, device: str) -> None:
    x, add, weight, bias = (torch.randn(*s) for s in ((3, 100), (3, 100), (100,), (100,)))
    wanted = add + bias if biased else add
    root, stream = add.clone().to(device), x.clone().to(device)
    out = torch.empty(3, 100, dtype=torch.bfloat16, device=device)
    rows.rms_norm(
        stream, weight.to(device), 1e-6, out, add=root, bias=bias.to(device) if biased else None
    ).run()
    assert torch.equal(root.cpu(), wanted) and torch.equal(stream.cpu(), x + wanted)
    close(out, reference.rms_norm(x + wanted, weight, 1e-6))
    rows.rms_norm(stream, None, 0.0, None, add=root).run()
    assert torch.equal(stream.cpu(), (x + wanted) + wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype, device: str) -> None:
    gate, up = 4 * torch.randn(3, 700), torch.randn(3, 700)
    gate[0, :3] = torch.tensor([200.0, -200.0, 0.0])
    out = torch.full((3, 700), torch.nan, dtype=dtype, device=device)
    rows.silu_mul(gate.to(device), up.to(device), out).run()
    close(out, reference.silu_mul(gate, up))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head", "q_heads", "kv_heads"), [(32, 5, 2), (80, 2, 1), (6, 1, 3)])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_cache(
    head: int, q_heads: int, kv_heads: int, normed: bool, dtype: torch.dtype, device: str
) -> None:
    m, positions = 4, torch.tensor([5, 0, 9, 63], dtype=torch.int32)
    slots = torch.tensor([70, 0, 191, 63])
    q, k, v = (torch.randn(m, heads * head) for heads in (q_heads, kv_heads, kv_heads))
    angles = torch.randn(64, head // 2)
    cos, sin = angles.cos(), angles.sin()
    norms = [torch.randn(head).to(dtype) for _ in range(2)] if normed else [None, None]
    cache = ops.KVCache.allocate(3, kv_heads, head, dtype)
    cache.keys.fill_(7), cache.values.fill_(7)
    there = ops.KVCache(cache.keys.to(device), cache.values.to(device))
    out = torch.full((m, q_heads * head), torch.nan, dtype=dtype, device=device)
    rows.rope_and_cache(
        q.to(device), k.to(device), v.to(device), out, cos=cos.to(device), sin=sin.to(device),
        positions=positions.to(device), slots=slots.to(device), cache=there,
        q_norm=None if norms[0] is None else norms[0].to(device),
        k_norm=None if norms[1] is None else norms[1].to(device), eps=1e-6,
    ).run()  # fmt: skip

    def turned(x: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        heads = x.view(m, -1, head)
        exact = heads.double() if norm is None else reference.rms_norm(heads, norm, 1e-6)
        return reference.rope(exact, cos, sin, positions)

    # low * cos - high * sin may cancel: what is lost is counted in roundings of its two parts.
    bound = HALF_STEP[dtype] + 2.0**-20
    for found, exact in ((out.view(m, -1, head), turned(q, norms[0])),):
        assert ((found.cpu().double() - exact).abs() <= bound * exact.abs() + 2.0**-19).all()
    keys, values = there.keys.cpu(), there.values.cpu()
    written = keys[slots // 64, :, :, slots % 64].double()
    exact = turned(k, norms[1])
    assert ((written - exact).abs() <= bound * exact.abs() + 2.0**-19).all()
    assert torch.equal(values[slots // 64, :, slots % 64], v.view(m, -1, head).to(dtype))
    untouched = torch.ones(3, 64, dtype=torch.bool)
    untouched[slots // 64, slots % 64] = False
    assert (keys.transpose(2, 3).transpose(1, 2)[untouched] == 7).all()
    assert (values.transpose(1, 2)[untouched] == 7).all()


def test_greatest_is_that_of_the_cpu(device: str) -> None:
    x = torch.randn(7, 9000)
    x[1, 8999], x[2, [3, 5000]], x[3, 17], x[4, 8998] = 99.0, 50.0, torch.nan, -torch.inf
    x[5] = -1.0
    x[6] = torch.tensor([-0.0, 0.0]).repeat(4500)
    out = torch.empty(7, dtype=torch.int64, device=device)
    reductions.greatest(x.to(device), out).run()
    assert out.tolist() == ops.greatest(x)
    assert out.tolist()[1:] == [8999, 3, -1, -1, 0, 0]


def splitmix(state: int) -> int:
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("size", [1, 4096, 5001])
def test_digest(size: int, dtype: torch.dtype, device: str) -> None:
    tensor = torch.randint(-128, 128, (size,)).to(dtype)
    sums = torch.empty(reductions.digest_blocks(tensor), dtype=torch.int64, device=device)

    def found(of: torch.Tensor, seed: int) -> int:
        reductions.digest(of.to(device), seed, sums).run()
        return reductions.digest_value(int(sums.sum()), of.nbytes, seed)

    words = tensor.view(reductions.WORDS[dtype.itemsize]).tolist()
    golden, top = 0x9E3779B97F4A7C15, (1 << 8 * dtype.itemsize) - 1
    total = sum(splitmix((w & top) ^ ((i + 1) * golden + 5) & MASK) for i, w in enumerate(words))
    wanted = splitmix((total ^ ((tensor.nbytes + 1) * golden + 5)) & MASK)
    assert found(tensor, 5) == wanted
    changed = tensor.clone()
    changed[size // 2] += 1
    assert found(changed, 5) != wanted != found(tensor, 6)
