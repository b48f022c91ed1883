"""Values of `linear` against float64, and exactly where arithmetic is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from isobit.errors import InputError
from isobit.kernels import ops, reference
from isobit.kernels.weights import layout

Maker = Callable[..., layout.PackedWeight]

UNEVEN = [(0, 13), (13, 77), (77, 78), (78, 208), (208, 211)]


def check(x: torch.Tensor, weight: layout.PackedWeight) -> None:
    out = ops.linear(x, weight)
    dense = reference.dense_segments(weight).transpose(1, 2)
    exact = x.double() @ dense
    # A sum of K products in fp32 is off by at most about K roundings of the sum of magnitudes.
    bound = (weight.k + 8) * 2.0**-24 * (x.double().abs() @ dense.abs())
    assert out.dtype == torch.float32 and out.shape == exact.shape
    assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 130), (3, 48), (8, 33), (15, 64), (513, 20)])
@pytest.mark.usefixtures("isa")
def test_quantized(
    quantized: Maker, dtype: torch.dtype, m: int, n: int, bits: int, zeros: bool
) -> None:
    weight = quantized(n, UNEVEN, [0, 2, 2, 5], bits=bits, zeros=zeros)
    check(torch.randn(m, weight.k).to(dtype), weight)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("isa")
def test_scales_stay_16_bit(quantized: Maker, scale_dtype: torch.dtype) -> None:
    weight = quantized(40, UNEVEN, [0, 5], scale_dtype=scale_dtype)
    assert weight.scales is not None and weight.scales.dtype == scale_dtype
    check(torch.randn(2, weight.k).bfloat16(), weight)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("m", "n"), [(1, 70), (6, 37), (513, 5)])
@pytest.mark.usefixtures("isa")
def test_dense(dtype: torch.dtype, kind: torch.dtype, m: int, n: int) -> None:
    weight = layout.pack_dense(torch.randn(n, 151).to(kind), segments=[0, 51, 51, 151])
    check(torch.randn(m, 151).to(dtype), weight)


@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.usefixtures("isa")
def test_act_order(quantized: Maker, dtype: torch.dtype, m: int) -> None:
    weight = quantized(24, UNEVEN, [0, 5], zeros=True, order=torch.randperm(211))
    check(torch.randn(m, 211).to(dtype), weight)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("m", [1, 11])
@pytest.mark.usefixtures("isa")
def test_integers_are_exact(dtype: torch.dtype, m: int, bits: int, zeros: bool) -> None:
    codes = torch.randint(0, 2**bits, (50, 211), dtype=torch.uint8)
    zero = torch.randint(0, 2**bits + (bits == 4), (50, 5)).to(torch.uint8) if zeros else None
    weight = layout.pack_quantized(
        codes, torch.ones(50, 5), zero, bits=bits, runs=UNEVEN, segments=[0, 2, 5]
    )
    x = torch.randint(-8, 9, (m, 211)).to(dtype)
    assert torch.equal(ops.linear(x, weight).double(), reference.linear(x, weight))


@pytest.mark.usefixtures("isa")
def test_every_code_and_zero_point() -> None:
    for bits, tops in ((4, 17), (8, 256)):
        zeros = torch.arange(tops).to(torch.uint8).unsqueeze(1)
        codes = torch.arange(2**bits).to(torch.uint8).expand(tops, -1).contiguous()
        weight = layout.pack_quantized(
            codes, torch.ones(tops, 1), zeros, bits=bits, runs=[(0, 2**bits)], segments=[0, 1]
        )
        out = ops.linear(torch.eye(2**bits, dtype=torch.bfloat16), weight)[0]
        assert torch.equal(out.T, codes.float() - zeros.float())


@pytest.mark.parametrize("kind", ["int4", "int8", "bf16", "fp32"])
@pytest.mark.usefixtures("isa")
def test_nothing_owned(quantized: Maker, dtype: torch.dtype, kind: str) -> None:
    def weight(n: int, runs: list[tuple[int, int]], segments: list[int]) -> layout.PackedWeight:
        if kind.startswith("int"):
            return quantized(n, runs, segments, bits=int(kind[3:]), zeros=True)
        edges = [begin for begin, _ in runs] + [runs[-1][1]] if runs else [0]
        values = torch.randn(n, edges[-1], dtype=torch.float32)
        values = values.bfloat16() if kind == "bf16" else values
        return layout.pack_dense(values, segments=[edges[i] for i in segments])

    none = ops.linear(torch.empty(3, 0, dtype=dtype), weight(20, [], [0, 0, 0]))
    assert none.shape == (2, 3, 20)
    assert none.view(torch.int32).eq(0).all()
    some = ops.linear(torch.ones(3, 9, dtype=dtype), weight(20, [(0, 9)], [0, 0, 1]))
    assert some[0].view(torch.int32).eq(0).all() and some[1].abs().sum() > 0
    assert ops.linear(torch.ones(3, 9, dtype=dtype), weight(0, [(0, 9)], [0, 1])).shape == (1, 3, 0)
    assert ops.linear(torch.ones(0, 9, dtype=dtype), weight(5, [(0, 9)], [0, 1])).shape == (1, 0, 5)


@pytest.mark.usefixtures("isa")
def test_halves_widen_exactly() -> None:
    """Every finite fp16, as an activation and as a weight (and denormals among them)."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    every = every[every.isfinite()].unsqueeze(1)
    one = layout.pack_dense(torch.ones(1, 1), segments=[0, 1])
    assert torch.equal(ops.linear(every, one)[0], every.float())
    weight = layout.pack_dense(every, segments=[0, 1])
    assert torch.equal(ops.linear(torch.ones(1, 1), weight)[0], every.float().T)


def test_bad_activations_are_named() -> None:
    weight = layout.pack_dense(torch.ones(2, 8), segments=[0, 8])
    for x in (
        torch.ones(3, 7),
        torch.ones(8),
        torch.ones(3, 8, dtype=torch.float64),
        torch.ones(8, 3).T,
    ):
        with pytest.raises(InputError, match=r"E-KERNEL-SHAPE linear: x is .* \[\*, 8\] on cpu"):
            ops.linear(x, weight)


def test_weights_must_fit_together(quantized: Maker) -> None:
    weight = quantized(20, UNEVEN, [0, 5], zeros=True)
    fields = {name: getattr(weight, name) for name in weight.__dataclass_fields__}
    assert weight.zeros is not None and weight.gather is not None and weight.scales is not None
    changes: dict[str, object] = {
        "kind": "int3",
        "n": 90,
        "data": weight.data.to(torch.int64),
        "scales": weight.scales.transpose(1, 2).contiguous().transpose(1, 2),
        "zeros": weight.zeros.int(),
        "run_offsets": weight.run_offsets + 8,
        "segment_offsets": weight.segment_offsets.long(),
        "gather": weight.gather + 1000,
    }
    for name, value in changes.items():
        with pytest.raises(InputError, match="E-KERNEL-SHAPE"):
            layout.PackedWeight(**(fields | {name: value}))
