"""W8A8 equals an integer computation in torch bit by bit, on every instruction set."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import fake_quantize

from isobit.errors import InputError
from isobit.kernels import ops, reference
from isobit.kernels.weights import layout

NAN, INF = float("nan"), float("inf")


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit by bit: -0 is not 0."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@dataclass
class Product:
    """A weight as its checkpoint says it: integers w `[N, K]`, scales `[N, R]`, runs, segments."""

    w: torch.Tensor
    scales: torch.Tensor
    runs: list[tuple[int, int]]
    segments: list[int]
    input_scale: float | None = None
    order: torch.Tensor | None = None

    @property
    def packed(self) -> layout.PackedWeight:
        return layout.pack_quantized(
            (self.w + 128).to(torch.uint8),
            self.scales,
            None,
            bits=8,
            runs=self.runs,
            segments=self.segments,
            order=self.order,
            activation="int8",
            input_scale=self.input_scale,
        )

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        """x `[M, K]` gives fp32 `[S, M, N]`: int64 sums, and the contract's fp32 steps."""
        out = torch.zeros(len(self.segments) - 1, len(x), len(self.w))
        for segment, (first, last) in enumerate(itertools.pairwise(self.segments)):
            if first == last:
                continue
            index = torch.arange(*self.runs[first])
            index = index if self.order is None else self.order[index]
            part = x[:, index].float()
            if self.input_scale is None:
                xs = part.abs().amax(1, keepdim=True) / 127 if len(index) else torch.ones(1, 1)
                xs[xs == 0] = 1
            else:
                xs = torch.full((len(x), 1), self.input_scale)
            q = torch.round(part / xs).clamp(-128, 127).long()
            total = (q @ self.w[:, index].long().T).float()
            out[segment] = total * xs * self.scales[:, first].float()
        return out


def product(n: int, lengths: list[int], segments: list[int] | None = None, **more: Any) -> Product:
    """Random integers and scales; a segment per run unless told otherwise."""
    runs = list(itertools.pairwise([0, *itertools.accumulate(lengths)]))
    segments = list(range(len(runs) + 1)) if segments is None else segments
    w = torch.randint(-128, 128, (n, sum(lengths)))
    return Product(w, torch.randn(n, len(runs)), runs, segments, **more)


@pytest.mark.parametrize("static", [None, 0.0173])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 130), (3, 48), (8, 33), (15, 64), (513, 20)])
@pytest.mark.usefixtures("isa")
def test_equals_torch(dtype: torch.dtype, m: int, n: int, static: float | None) -> None:
    case = product(n, [13, 64, 1, 130, 3], input_scale=static)
    x = torch.randn(m, 211).to(dtype)
    out = ops.linear(x, case.packed)
    assert out.dtype == torch.float32 and same(out, case.expected(x))


@pytest.mark.usefixtures("isa")
def test_empty_segments(dtype: torch.dtype) -> None:
    """A segment without a run, and one whose run is empty."""
    case = product(37, [24, 0, 50], [0, 0, 1, 2, 2, 3, 3])
    x = torch.randn(5, 74).to(dtype)
    assert same(ops.linear(x, case.packed) + 0.0, case.expected(x) + 0.0)
    assert ops.linear(x, case.packed)[[0, 2, 3, 5]].eq(0).all()
    nothing = product(20, [], [0, 0, 0])
    out = ops.linear(torch.empty(3, 0, dtype=dtype), nothing.packed)
    assert out.shape == (2, 3, 20) and out.view(torch.int32).eq(0).all()
    assert ops.linear(x, product(0, [74]).packed).shape == (1, 5, 0)
    assert ops.linear(x[:0].contiguous(), product(4, [74]).packed).shape == (1, 0, 4)


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("isa")
def test_scales_stay_16_bit(scale_dtype: torch.dtype) -> None:
    case = product(40, [70, 30])
    case.scales = case.scales.to(scale_dtype)
    x = torch.randn(3, 100).bfloat16()
    assert same(ops.linear(x, case.packed), case.expected(x))


@pytest.mark.usefixtures("isa")
def test_order_and_activations_no_run_names(dtype: torch.dtype) -> None:
    case = product(24, [70, 33], order=torch.randperm(120)[:103])
    case.w = torch.randint(-128, 128, (24, 120))
    x = torch.randn(6, 120).to(dtype)
    assert same(ops.linear(x, case.packed), case.expected(x))
    unnamed = torch.ones(120, dtype=torch.bool)
    unnamed[case.order] = False
    x[:, unnamed] = NAN
    assert same(ops.linear(x, case.packed), case.expected(x))


@pytest.mark.parametrize("magnitude", [1e-38, 1e-3, 1.0, 3e38])
@pytest.mark.usefixtures("isa")
def test_activations_as_compressed_tensors_has_them(magnitude: float) -> None:
    """Under the identity as weight the product is the dequantized activation; the scale is ours."""
    args = QuantizationArgs(
        num_bits=8, symmetric=True, strategy=QuantizationStrategy.TOKEN, dynamic=True
    )
    x = (torch.rand(40, 96) - 0.5) * 2 * magnitude
    x[3] = 0
    scales = x.abs().amax(1, keepdim=True) / 127
    scales[scales == 0] = 1
    zeros = torch.zeros_like(scales)
    case = product(96, [96])
    case.w, case.scales = torch.eye(96, dtype=torch.int64), torch.ones(96, 1)
    assert torch.equal(ops.linear(x, case.packed)[0], fake_quantize(x, scales, zeros, args))


@pytest.mark.usefixtures("isa")
def test_ties_go_to_even_and_the_ends_clamp() -> None:
    case = product(1, [1], input_scale=0.5)
    case.w, case.scales = torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1)
    x = torch.cat([torch.arange(-600, 600) / 8, torch.tensor([3e38, -3e38, 1e-45])]).unsqueeze(1)
    out = ops.linear(x, case.packed)[0]
    assert torch.equal(out, torch.round(x / 0.5).clamp(-128, 127) * 0.5)


@pytest.mark.usefixtures("isa")
def test_tiny_rows_are_zero_and_nothing_divides_by_it() -> None:
    case = product(17, [40])
    x = torch.zeros(4, 40)
    x[1], x[2], x[3, 7] = 1e-45, -0.0, 1e-40
    out = ops.linear(x, case.packed)[0]
    assert out[:3].eq(0).all() and same(out, case.expected(x)[0])


@pytest.mark.parametrize("static", [None, 0.02])
@pytest.mark.parametrize("value", [NAN, -NAN, INF, -INF])
@pytest.mark.usefixtures("isa")
def test_what_is_not_finite_shows(dtype: torch.dtype, value: float, static: float | None) -> None:
    case = product(35, [40, 23, 64], input_scale=static)
    x = torch.randn(9, 127).to(dtype)
    clean = ops.linear(x, case.packed)
    x[2, 41], x[5, 126], x[5, 0] = value, value, value
    out = ops.linear(x, case.packed)
    hit = torch.zeros(3, 9, dtype=torch.bool)
    hit[1, 2] = hit[2, 5] = hit[0, 5] = True
    assert out[hit].isnan().all() and same(out[~hit], clean[~hit])


@pytest.mark.parametrize(("w", "x"), [(-128, -1.0), (127, -1.0), (-128, 1.0), (127, 1.0)])
@pytest.mark.usefixtures("isa")
def test_the_longest_segment_is_exact(w: int, x: float) -> None:
    """131071 products of the largest codes: the sum of q * (w + 128) wraps around on the way."""
    for length in (131071, 131069):
        case = product(3, [length])
        case.w.fill_(w)
        row = torch.full((1, length), x)
        assert same(ops.linear(row, case.packed), case.expected(row))


def test_a_longer_segment_is_refused() -> None:
    with pytest.raises(InputError, match=r"E-KERNEL-SHAPE a segment .* 131072 long"):
        _ = product(1, [4, 131072]).packed
    assert product(1, [131071, 131071]).packed.segments == 2


@pytest.mark.parametrize("static", [None, 0.02])
@pytest.mark.usefixtures("isa")
def test_rows_and_threads_do_not_show(dtype: torch.dtype, static: float | None) -> None:
    weight = product(91, [72, 131], [0, 1, 1, 2], input_scale=static).packed
    x = torch.randn(513, 203).to(dtype)
    whole = ops.linear(x, weight)
    for begin, end in ((0, 1), (511, 512), (512, 513), (100, 105), (7, 71)):
        assert same(ops.linear(x[begin:end], weight), whole[:, begin:end])
    for threads in (2, 3):
        ops.set_threads(threads)
        for m in (1, 513):
            assert same(ops.linear(x[:m], weight), whole[:, :m])
    x[3] = NAN
    assert same(ops.linear(x, weight)[:, 4:], whole[:, 4:])


@pytest.mark.usefixtures("isa")
def test_columns_atoms_and_padding_do_not_show(dtype: torch.dtype) -> None:
    case = product(96, [40, 61, 102])
    x = torch.randn(6, 203).to(dtype)
    whole = ops.linear(x, case.packed)
    part = Product(case.w[37:80], case.scales[37:80], case.runs, case.segments)
    assert same(ops.linear(x, part.packed), whole[:, :, 37:80])
    for atom, (begin, end) in enumerate(case.runs):
        scales = case.scales[:, atom : atom + 1]
        own = Product(case.w[:, begin:end], scales, [(0, end - begin)], [0, 1])
        out = ops.linear(x[:, begin:end].contiguous(), own.packed)
        assert same(out[0], whole[atom])
        # A padded atom: its own features, then weights of zero under activations of zero.
        wide = torch.nn.functional.pad(own.w, (0, 50))
        padded = Product(wide, scales, [(0, end - begin + 50)], [0, 1])
        x_wide = torch.nn.functional.pad(x[:, begin:end], (0, 50))
        assert same(ops.linear(x_wide, padded.packed), out)


@pytest.mark.parametrize("static", [None, 0.011])
@pytest.mark.parametrize("m", [1, 2, 7, 33])
def test_instruction_sets_agree(dtype: torch.dtype, m: int, static: float | None) -> None:
    weight = product(150, [301, 0, 514, 1000], input_scale=static).packed
    x = torch.randn(m, 1815).to(dtype)
    x[0, 5], x[-1, -1] = NAN, 100
    outs = []
    try:
        for name in ops.available_isas():
            ops.set_isa(name)
            outs.append(ops.linear(x, weight))
    finally:
        ops.set_isa(ops.available_isas()[0])
    assert all(same(out, outs[0]) for out in outs)


@pytest.mark.parametrize("static", [None, 0.03])
@pytest.mark.usefixtures("isa")
def test_reference(dtype: torch.dtype, static: float | None) -> None:
    weight = product(50, [60, 71, 80], [0, 1, 1, 2, 3], input_scale=static).packed
    x = torch.randn(7, 211).to(dtype)
    x[1] = 0
    x[4, 65] = INF
    exact = reference.linear(x, weight)
    out = ops.linear(x, weight).double()
    assert exact.dtype == torch.float64 and torch.equal(exact.isnan(), out.isnan())
    # The sum rounded to fp32, and two products.
    assert ((out - exact).abs() <= 3.1 * 2.0**-24 * exact.abs())[~exact.isnan()].all()


def test_a_caller_that_flushes_denormals_does_not_show() -> None:
    case = product(20, [40])
    x = torch.randn(3, 40) * 1e-38
    expected = case.expected(x)
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush denormals here")
    try:
        out = ops.linear(x, case.packed)
    finally:
        torch.set_flush_denormal(False)
    assert same(out, expected)


def test_what_cannot_take_int8_activations() -> None:
    weight = product(20, [40, 24]).packed
    fields = {name: getattr(weight, name) for name in weight.__dataclass_fields__}
    runs = {"segment_offsets": torch.tensor([0, 2], dtype=torch.int32)}
    zeros = {"zeros": torch.full((2, 32), 128, dtype=torch.uint8)}
    float_scale = {"activation": "float", "input_scale": 0.1}
    scales = [{"input_scale": value} for value in (0.0, -0.1, NAN, INF, 1e-60, 1e60)]
    for change in ({"activation": "int4"}, runs, zeros, float_scale, *scales):
        with pytest.raises(InputError, match="E-KERNEL-SHAPE"):
            layout.PackedWeight(**(fields | change))
    codes = torch.zeros(2, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match="int8 activations is int4; it must be int8"):
        layout.pack_quantized(
            codes,
            torch.ones(2, 1),
            None,
            bits=4,
            runs=[(0, 8)],
            segments=[0, 1],
            activation="int8",
        )
    dense = layout.pack_dense(torch.ones(2, 8), segments=[0, 8])
    fields = {name: getattr(dense, name) for name in dense.__dataclass_fields__}
    with pytest.raises(InputError, match="int8 activations is float32"):
        layout.PackedWeight(**(fields | {"activation": "int8"}))
