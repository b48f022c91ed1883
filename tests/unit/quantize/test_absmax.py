"""Round to nearest: checked in float64, and packed as compressed-tensors packs."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.shard.formats.codes import pack_words, unpack_words
from isobit.shard.quantize.absmax import quantize_absmax

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# A quotient within this of a half-integer may be rounded either way: the code divides in float32.
TIE = 2**-16


@st.composite
def weights(draw: st.DrawFn) -> tuple[torch.Tensor, int, int]:
    """A weight [N, K] whose groups differ in magnitude by up to 2^16, its bits and group size."""
    n, groups, size = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    values = torch.randn(n, groups, size, generator=generator)
    magnitudes = 2.0 ** torch.randint(-8, 9, (n, groups, 1), generator=generator)
    dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]
    weight = (values * magnitudes).view(n, groups * size).to(dtype)
    return weight, draw(st.sampled_from([4, 8])), size


def exact(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Groups [N, G, size] in float64."""
    return weight.double().view(weight.shape[0], -1, size)


@settings(deadline=None)
@given(case=weights())
def test_scales_are_the_nearest_to_absmax_over_half_the_codes(case):
    weight, bits, size = case
    scales = quantize_absmax(weight, bits, size).scales
    wanted = exact(weight, size).abs().amax(dim=2) / ((2**bits - 1) / 2)
    assert scales.dtype == weight.dtype
    # Rounding to nearest is off by half a unit; dividing in float32 first adds next to nothing.
    limits = torch.finfo(weight.dtype)
    unit = limits.eps * wanted.clamp(min=limits.smallest_normal)
    assert ((scales.double() - wanted).abs() <= unit / 2 * (1 + 2**-6)).all()


@settings(deadline=None)
@given(case=weights())
def test_codes_are_the_nearest_for_the_stored_scale(case):
    weight, bits, size = case
    result, half = quantize_absmax(weight, bits, size), 1 << (bits - 1)
    assert result.codes.dtype == torch.uint8
    codes = exact(result.codes, size) - half
    quotient = exact(weight, size) / result.scales.double()[:, :, None]
    assert ((codes >= -half) & (codes < half)).all()
    clamped = quotient.clamp(-half, half - 1)
    assert ((codes - clamped).abs() <= 0.5 + TIE).all()


@settings(deadline=None)
@given(case=weights())
def test_no_value_is_off_by_more_than_half_a_step(case):
    """Half a step, and for the largest magnitudes what the rounding of the scale takes away."""
    weight, bits, size = case
    result, half = quantize_absmax(weight, bits, size), 1 << (bits - 1)
    scales = result.scales.double()
    wanted = exact(weight, size).abs().amax(dim=2) / (half - 0.5)
    bound = (0.5 + TIE) * scales + (half - 0.5) * (scales - wanted).abs()
    back = (exact(result.codes, size) - half) * scales[:, :, None]
    assert ((back - exact(weight, size)).abs() <= bound[:, :, None]).all()


@settings(deadline=None)
@given(case=weights())
def test_dequantize_is_scale_times_code(case):
    weight, bits, size = case
    result = quantize_absmax(weight, bits, size)
    wanted = (exact(result.codes, size) - (1 << (bits - 1))) * result.scales.double()[:, :, None]
    # An 8-bit integer times a scale of at most 24 bits is rounded once, to float32.
    ours = exact(result.dequantize(bits), size)
    assert ((ours - wanted).abs() <= wanted.abs() * 2**-24).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_group_of_zeros_has_a_finite_scale_and_stays_zero(bits, dtype):
    weight = torch.zeros(2, 16, dtype=dtype)
    weight[0, :8] = torch.linspace(-1, 1, 8)
    result = quantize_absmax(weight, bits, 8)
    assert result.scales[0, 1] == result.scales[1, 0] == 1
    assert result.codes[0, 8:].eq(1 << (bits - 1)).all()
    assert result.dequantize(bits)[1].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_smallest_numbers_give_no_zero_scale(dtype):
    weight = torch.full((1, 8), torch.finfo(dtype).smallest_normal, dtype=dtype) / 2
    result = quantize_absmax(weight, 4, 8)
    assert (result.scales > 0).all()
    assert result.dequantize(4).isfinite().all()


def test_small_fp16_weights_keep_their_eight_bits():
    """Their scale, 1e-3 / 127.5, lies below the smallest normal fp16 number."""
    weight = (torch.linspace(-1, 1, 64, dtype=torch.float64) * 1e-3).half().view(1, 64)
    error = quantize_absmax(weight, 8, 64).dequantize(8) - weight.float()
    assert error.abs().max() <= 0.51 * 1e-3 / 127.5


def test_the_largest_fp16_number_stays_finite():
    weight = torch.tensor([[65504.0, -65504.0] * 4], dtype=torch.float16)
    for bits in (4, 8):
        assert quantize_absmax(weight, bits, 8).dequantize(bits).isfinite().all()


MATRICES = st.tuples(
    st.integers(1, 6), st.integers(1, 70), st.sampled_from([4, 8]), st.integers(0, 1 << 30)
)


def random_codes(n: int, k: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=generator)


@settings(deadline=None)
@given(matrix=MATRICES)
def test_pack_words_is_what_compressed_tensors_packs(matrix):
    codes, bits = random_codes(*matrix), matrix[2]
    signed = (codes.int() - (1 << (bits - 1))).to(torch.int8)
    # Both fill the tail of a row with raw 0.
    assert torch.equal(pack_words(codes, bits), pack_to_int32(signed, bits))


@settings(deadline=None)
@given(matrix=MATRICES)
def test_unpack_words_is_what_compressed_tensors_unpacks(matrix):
    n, k, bits, _ = matrix
    codes = random_codes(*matrix)
    words = pack_to_int32((codes.int() - (1 << (bits - 1))).to(torch.int8), bits)
    theirs = unpack_from_int32(words, bits, torch.Size((n, k))).int() + (1 << (bits - 1))
    assert torch.equal(unpack_words(words, bits)[:, :k].int(), theirs)
