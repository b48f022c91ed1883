"""Asymmetric and searched grids, errors of settings, and measures of error, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.shard.quantize.absmax import quantize_absmax
from isobit.shard.quantize.quality import layer_error, output_energy, sqnr_db

from .calibration import hessian, inputs, output_error, weight

CASES = {
    "n": st.integers(1, 4),
    "groups": st.integers(1, 4),
    "size": st.integers(1, 24),
    "bits": st.sampled_from([4, 8]),
    "shift": st.sampled_from([-3.0, -0.5, 0.0, 0.5, 3.0]),
    "dtype": st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    "seed": st.integers(0, 1 << 30),
}


@settings(deadline=None)
@given(**CASES)
def test_asymmetric_values_are_off_by_half_a_step(n, groups, size, bits, shift, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    w = (torch.randn(n, groups * size, generator=generator) + shift).to(dtype)
    result = quantize_absmax(w, bits, size, symmetric=False)
    assert result.scales.dtype == dtype
    assert result.zeros.dtype == torch.uint8
    assert int(result.zeros.max()) < 1 << bits
    wide = w.double().view(n, groups, size)
    span = wide.amax(2).clamp(min=0) - wide.amin(2).clamp(max=0)
    scales, top = result.scales.double(), 2**bits - 1
    wanted = span / top
    live = wanted > 0
    unit = torch.finfo(dtype).eps
    assert ((scales - wanted).abs()[live] <= unit * wanted[live]).all()
    # Half a step; half a step more at the ends, where the zero point was rounded; and what rounding
    # the scale takes from the whole range.
    bound = (1 + 1e-4) * scales + top * (scales - wanted).abs()
    back = result.dequantize(bits).double().view(n, groups, size)
    assert ((back - wide).abs() <= bound[:, :, None] + 1e-30).all()


def test_zero_is_exact_in_every_asymmetric_group():
    w = weight(8, 64).abs()
    w[:, ::7] = 0
    back = quantize_absmax(w, 4, 16, symmetric=False).dequantize(4)
    assert back[:, ::7].eq(0).all()
    zeros = quantize_absmax(torch.zeros(2, 16), 4, 8, symmetric=False)
    assert zeros.scales.eq(1).all()
    assert zeros.dequantize(4).eq(0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("exponent", [2.0, 2.4])
def test_the_searched_range_is_never_worse(symmetric, exponent):
    w = weight(16, 128).pow(3) * 400
    plain = quantize_absmax(w, 4, 32, symmetric=symmetric)
    found = quantize_absmax(w, 4, 32, symmetric=symmetric, mse=exponent)

    def errors(result) -> torch.Tensor:
        wrong = (result.dequantize(4) - w).abs().double().pow(exponent)
        return wrong.view(16, 4, 32).sum(2)

    assert (errors(found) <= errors(plain) * (1 + 1e-5)).all()
    assert errors(found).sum() < 0.97 * errors(plain).sum()


def test_scales_of_another_dtype_and_one_group_per_output():
    w = weight(4, 96, torch.bfloat16)
    result = quantize_absmax(w, 8, -1, scale_dtype=torch.float16)
    assert result.scales.dtype == torch.float16
    assert result.scales.shape == (4, 1)
    assert (result.dequantize(8) - w).abs().max() <= 0.51 * float(result.scales.max())


def test_a_scale_too_large_for_its_dtype_stays_finite():
    w = torch.full((1, 8), 1e7)
    assert quantize_absmax(w, 4, 8, scale_dtype=torch.float16).dequantize(4).isfinite().all()


def test_a_group_size_that_does_not_divide_names_those_that_do(error_of):
    error = error_of(quantize_absmax, weight(2, 13696), 4, 100)
    assert error.code == "E-QUANT-GROUP"
    assert "100 does not divide 13696 input features (136.96 groups)" in error.message
    assert "Group sizes that do: 128, 64, 32, 16, 8, -1" in error.message
    assert error_of(quantize_absmax, weight(2, 64), 3, 32).code == "E-QUANT-SCHEME"


@pytest.mark.parametrize("k", [3, 512, 513, 1100])
def test_energy_is_the_trace(k):
    w, h = weight(5, k), hessian(inputs(50, k))
    wanted = float((w.double() @ h.double() * w.double()).sum())
    assert output_energy(w, h) == pytest.approx(wanted, rel=1e-5)
    quantized = quantize_absmax(w, 4, k).dequantize(4)
    assert layer_error(w, quantized, h) == pytest.approx(output_error(w, quantized, h), rel=1e-4)


def test_errors_of_nothing():
    w = weight(3, 8)
    assert layer_error(w, w, torch.eye(8)) == 0
    assert layer_error(torch.zeros(3, 8), w, torch.eye(8)) == 0
    assert sqnr_db(100.0, 1.0) == pytest.approx(20)
    assert sqnr_db(1.0, 0.0) == math.inf
