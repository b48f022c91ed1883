"""Values of products against float64, and exactly where arithmetic is exact."""

from __future__ import annotations

import pytest
import torch

from isobit.errors import InputError
from isobit.kernels import ops, reference
from isobit.kernels.gpu.layout import to_gpu
from isobit.kernels.gpu.linear import tree_nodes
from isobit.kernels.weights import layout
from isobit.kernels.weights.weight import PackedWeight

from .weights import product, quantized, spans

UNEVEN = [(0, 13), (13, 77), (77, 78), (78, 200), (200, 211)]
DTYPES = [torch.bfloat16, torch.float16]
FORMS = {
    "group 128": (spans(128, 512), [0, 2, 4]),
    "group 64": (spans(64, 448), [0, 3, 7]),
    "group 32": (spans(32, 160), [0, 1, 5]),
    "short last group": (spans(128, 300), [0, 3]),
    "uneven, an empty segment": (UNEVEN, [0, 2, 2, 5]),
    "one scale a segment": ([(0, 256), (256, 512)], [0, 1, 2]),
    "group 256": (spans(256, 768), [0, 2, 3]),
}


def check(x: torch.Tensor, weight: PackedWeight, device: str) -> None:
    out = product(x, weight, device)
    dense = reference.dense_segments(weight).transpose(1, 2)
    exact = x.double() @ dense
    # A sum of K products in fp32 is off by at most about K roundings of the sum of magnitudes.
    bound = (weight.k + 8) * 2.0**-24 * (x.double().abs() @ dense.abs())
    assert out.dtype == torch.float32 and out.shape == exact.shape
    assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", FORMS)
def test_groups(form: str, bits: int, dtype: torch.dtype, device: str) -> None:
    runs, segments = FORMS[form]
    symmetric = quantized(70, runs, segments, bits=bits)
    check(torch.randn(3, symmetric.k).to(dtype), symmetric, device)
    asymmetric = quantized(70, runs, segments, bits=bits, zeros=True, scale_dtype=torch.bfloat16)
    check(torch.randn(3, asymmetric.k).to(dtype), asymmetric, device)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zeros", [False, True])
def test_dtypes_of_scales(scale_dtype: torch.dtype, zeros: bool, device: str) -> None:
    weight = quantized(40, spans(128, 256), [0, 2], zeros=zeros, scale_dtype=scale_dtype)
    check(torch.randn(2, 256).bfloat16(), weight, device)


@pytest.mark.parametrize("bits", [4, 8])
def test_act_order(bits: int, device: str) -> None:
    weight = quantized(24, UNEVEN, [0, 2, 5], bits=bits, zeros=True, order=torch.randperm(211))
    check(torch.randn(5, weight.k).bfloat16(), weight, device)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (9, 65), (17, 128), (70, 130)])
def test_tails_of_rows_and_columns(m: int, n: int, device: str) -> None:
    check(torch.randn(m, 128).half(), quantized(n, spans(64, 128), [0, 2]), device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("segments", [[0, 128, 256], [0, 50, 50, 150]])
def test_dense(segments: list[int], dtype: torch.dtype, device: str) -> None:
    k = segments[-1]
    weight = layout.pack_dense(torch.randn(70, k).to(dtype), segments=segments)
    check(torch.randn(11, k).to(dtype), weight, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_integers_are_exact(bits: int, zeros: bool, dtype: torch.dtype, device: str) -> None:
    tops = 2**bits + (bits == 4) if zeros else 1
    codes = torch.randint(0, 2**bits, (256, 256), dtype=torch.uint8)
    codes[:, : 2**bits] = torch.arange(2**bits).to(torch.uint8)
    zero = (torch.arange(256) % tops).to(torch.uint8).unsqueeze(1).expand(-1, 2).contiguous()
    weight = layout.pack_quantized(
        codes, torch.ones(256, 2), zero if zeros else None, bits=bits, runs=[(0, 128), (128, 256)],
        segments=[0, 2],
    )  # fmt: skip
    x = torch.randint(-8, 9, (4, 256)).to(dtype)
    assert torch.equal(product(x, weight, device).double(), reference.linear(x, weight))


@pytest.mark.parametrize("input_scale", [None, 0.03])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_activations_have_the_bits_of_the_cpu(
    dtype: torch.dtype, input_scale: float | None, device: str
) -> None:
    weight = quantized(
        70, [(0, 130), (130, 131), (131, 300)], [0, 1, 1, 2, 3], bits=8,
        scale_dtype=torch.float32, activation="int8", input_scale=input_scale,
    )  # fmt: skip
    x = torch.randn(9, 300).to(dtype)
    x[2] = 0
    x[3, :130] = 1e-30 if dtype == torch.bfloat16 else 6e-8
    x[4, 7], x[5, 131] = torch.nan, torch.inf
    x[6, 0], x[6, 1:130] = 127, torch.arange(129) / 2
    ours, cpu = product(x, weight, device), ops.linear(x, weight)
    # A NaN is a NaN: its sign and payload are the machine's own.
    assert torch.equal(ours.isnan(), cpu.isnan()) and bool(cpu.isnan().any())
    assert ours.nan_to_num().numpy().tobytes() == cpu.nan_to_num().numpy().tobytes()


def test_a_bias_is_added_once_after_the_root(device: str) -> None:
    weight = quantized(66, spans(64, 256), [0, 1, 2, 3, 4])
    x, bias = torch.randn(3, 256).half(), torch.randn(66)
    plain = product(x, weight, device, [0, 1, 0, 2])
    assert torch.equal(product(x, weight, device, [0, 1, 0, 2], bias=bias), plain + bias)


def test_float32_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"E-KERNEL-KIND .* not float32"):
        to_gpu(layout.pack_dense(torch.randn(2, 8), segments=[0, 8]), "cpu")


@pytest.mark.parametrize("merges", [[1, 0], [0, 0, 2], [0, 2], [0] + [1] * 31])
def test_trees_that_are_not_complete_are_refused(merges: list[int]) -> None:
    with pytest.raises(InputError, match="E-KERNEL-SHAPE merges"):
        tree_nodes(merges)
