"""The ops as the rest of the house calls them."""

from __future__ import annotations

import pytest
import torch

from isobit.errors import InputError
from isobit.kernels import ops, reference
from isobit.kernels.backend import cuda
from isobit.kernels.gpu.layout import to_gpu

from .test_attention import setting
from .weights import product, quantized, spans

MERGES = torch.tensor([0, 1, 0, 2], dtype=torch.int32)


def test_linear(device: str) -> None:
    weight = quantized(40, spans(64, 256), [0, 1, 2, 3, 4])
    x = torch.randn(3, 256).bfloat16()
    there = to_gpu(weight, device)
    assert there.nbytes == sum(one.nbytes for one in there.tensors)
    for merges in (None, MERGES):
        wanted = product(x, weight, device, None if merges is None else merges.tolist())
        assert torch.equal(ops.linear(x.to(device), there, merges).cpu(), wanted)
    assert ops.linear(x[:0].to(device), there).shape == (4, 0, 40)


def test_what_cannot_be_multiplied_is_refused(device: str) -> None:
    there = to_gpu(quantized(40, spans(64, 256), [0, 4]), device)
    with pytest.raises(InputError, match=r"E-KERNEL-DTYPE linear: x is torch.float32"):
        ops.linear(torch.randn(1, 256, device=device), there)
    with pytest.raises(InputError, match=r"E-KERNEL-SHAPE linear: x is .* \[\*, 256\]"):
        ops.linear(torch.randn(1, 255, device=device).half(), there)


def test_the_other_ops(device: str) -> None:
    """Each is what its kernel gives; kernels have tests of their own."""
    gpu, x, w = cuda(), torch.randn(2, 64, device=device), torch.randn(64, device=device)
    normed = gpu.rms_norm(x, w, 1e-6, torch.float32, add=None, bias=None)
    torch.testing.assert_close(normed.cpu().double(), reference.rms_norm(x.cpu(), w.cpu(), 1e-6))
    gated = gpu.silu_mul(x, x, torch.float32)
    torch.testing.assert_close(gated.cpu().double(), reference.silu_mul(x.cpu(), x.cpu()))
    assert gpu.greatest(x) == x.argmax(1).tolist()
    assert gpu.digest(x, 1) == gpu.digest(x.clone(), 1) != gpu.digest(x, 2)
    assert gpu.digest(x[:0], 1) != gpu.digest(x[:0].half(), 2)


def test_attention_and_its_cache(device: str) -> None:
    gpu, case = cuda(), setting([70], torch.bfloat16, rows=3)
    there = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in case.pick([0]).items()
    }
    cache = ops.KVCache(case.cache.keys.to(device), case.cache.values.to(device))
    out = gpu.attention(
        case.q[:1].to(device), cache, head_to_kv=case.head_to_kv.to(device), **there
    )
    assert torch.equal(out.cpu(), case.run([0], device))
    there["positions"] = there["positions"] + 64
    with pytest.raises(InputError, match="E-KERNEL-INDEX attention: row 0 at position 131"):
        gpu.attention(case.q[:1].to(device), cache, head_to_kv=case.head_to_kv.to(device), **there)
    flat = torch.zeros(1, 80, device=device)
    pair = torch.zeros(1, 32, device=device)
    turns = torch.zeros(4, 8, device=device)
    place = torch.tensor([4], dtype=torch.int32, device=device)
    with pytest.raises(InputError, match="E-KERNEL-INDEX rope_and_cache: positions"):
        gpu.rope_and_cache(
            flat, pair, pair, turns, turns, place, place.long(), cache, None, None, 1e-6
        )
    turned = gpu.rope_and_cache(
        flat, pair, pair, turns, turns, place - 1, place.long(), cache, None, None, 1e-6
    )
    assert turned.shape == (1, 5, 16) and not turned.any()
