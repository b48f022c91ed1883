"""GPTQ against a textbook in float64: one column at a time, the inverse Hessian shrunk by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from isobit.shard.quantize import cholesky
from isobit.shard.quantize.absmax import quantize_absmax
from isobit.shard.quantize.cholesky import Factors, factor_upper_
from isobit.shard.quantize.gptq import GptqSettings, quantize_gptq

from .calibration import hessian, inputs, output_error, weight

N, K = 48, 192
TIE = 1e-4
X = inputs(400, K)
H = hessian(X)
W = weight(N, K)
SETTINGS = {
    "groups of 32": {"group_size": 32},
    "asymmetric": {"group_size": 32, "symmetric": False},
    "8 bits": {"group_size": 64, "bits": 8},
    "channel": {"group_size": -1},
    "channel, asymmetric": {"group_size": -1, "symmetric": False},
    "panels across groups": {"group_size": 16, "block_size": 48},
    "panels inside groups": {"group_size": 96, "block_size": 40},
    "act-order": {"group_size": 32, "desc_act": True},
    "act-order, asymmetric": {"group_size": 64, "desc_act": True, "symmetric": False},
    "act-order, channel": {"group_size": -1, "desc_act": True},
    "static groups": {"group_size": 32, "desc_act": True, "static_groups": True},
    "static groups in order": {"group_size": 32, "static_groups": True, "symmetric": False},
    "much damping": {"group_size": 32, "damp_percent": 0.5},
}


def grid(values: torch.Tensor, settings: GptqSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point [N, 1] of a group [N, g]."""
    low, high = values.amin(1, True).clamp(max=0), values.amax(1, True).clamp(min=0)
    top = 2**settings.bits - 1
    if settings.symmetric:
        return torch.maximum(-low, high) * 2 / top, torch.full_like(low, (top + 1) / 2)
    scale = (high - low) / top
    return scale, (-low / scale).round()


def textbook(w: torch.Tensor, h: torch.Tensor, settings: GptqSettings, ours: torch.Tensor):
    """Codes [N, K] and the dequantized weight, both float64, in the order of the features.

    The extreme of a symmetric group lies on a tie, -7.5, which float32 breaks either way: within
    TIE of one the textbook follows `ours`, codes [N, K].
    """
    w, h = w.double().clone(), h.double().clone()
    k = w.shape[1]
    width = k if settings.group_size == -1 else settings.group_size
    h += settings.damp_percent * h.diagonal().mean() * torch.eye(k)
    order = torch.arange(k)
    if settings.desc_act:
        order = h.diagonal().argsort(descending=True, stable=True)
    original, w, h = w.clone(), w[:, order], h[order][:, order]
    inverse, codes, back = h.inverse(), torch.empty_like(w), torch.empty_like(w)
    block = max(settings.block_size // width, 1) * width
    for i in range(k):
        if i % block == 0:
            seen = w.clone()
        group = (int(order[i]) if settings.static_groups else i) // width * width
        values = original if settings.static_groups else seen
        scale, zero = grid(values[:, group : group + width], settings)
        column = w[:, i : i + 1]
        quotient = (column / scale + zero).clamp(0, 2**settings.bits - 1)
        tie = ((quotient - quotient.floor()) - 0.5).abs() < TIE
        code = torch.where(tie, ours[:, order[i], None].double(), quotient.round())
        assert ((code - quotient).abs() <= 0.5 + TIE).all()
        codes[:, i : i + 1] = code
        back[:, i : i + 1] = (codes[:, i : i + 1] - zero) * scale
        error = (column - back[:, i : i + 1]) / inverse[i, i]
        w = w - error * inverse[i]
        inverse = inverse - inverse[:, i : i + 1] * inverse[i] / inverse[i, i]
    places = order.argsort()
    return codes[:, places], back[:, places]


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_codes_and_error_are_those_of_the_textbook(changes):
    settings = GptqSettings(**changes)
    result = quantize_gptq(W, H, settings)
    codes, back = textbook(W, H, settings, result.weight.codes)
    ours = result.weight.dequantize(settings.bits)
    error = output_error(W, back, H)
    assert output_error(W, ours, H) == pytest.approx(error, rel=1e-3)
    assert (result.weight.codes == codes).double().mean() > 0.99
    assert result.stats.layer_error == pytest.approx(output_error(W, ours, H), rel=1e-3)


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_it_is_better_than_rounding_to_nearest(changes):
    settings = GptqSettings(**changes)
    plain = quantize_absmax(W, settings.bits, settings.group_size, symmetric=settings.symmetric)
    assert quantize_gptq(W, H, settings).stats.layer_error < 0.8 * output_error(
        W, plain.dequantize(settings.bits), H
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mse", [0.0, 2.4])
def test_with_an_identity_hessian_it_rounds_to_nearest(bits, symmetric, group_size, dtype, mse):
    w = weight(N, K, dtype)
    settings = GptqSettings(bits=bits, group_size=group_size, symmetric=symmetric, mse=mse)
    ours = quantize_gptq(w, 3 * torch.eye(K), settings).weight
    plain = quantize_absmax(w, bits, group_size, symmetric=symmetric, mse=mse)
    assert torch.equal(ours.codes, plain.codes)
    assert torch.equal(ours.scales, plain.scales)
    assert ours.scales.dtype == dtype
    if not symmetric:
        assert torch.equal(ours.zeros, plain.zeros)


def test_panels_change_no_code_but_by_rounding():
    w, h = weight(8, 1280), hessian(inputs(600, 1280))
    results = [
        quantize_gptq(w, h, GptqSettings(group_size=128, block_size=size)).weight.codes
        for size in (16, 32, 128)
    ]
    for other in results[1:]:
        assert (results[0] == other).double().mean() > 0.99


def test_with_act_order_groups_follow_the_diagonal():
    result = quantize_gptq(W, H, GptqSettings(group_size=32, desc_act=True)).weight
    order = H.diagonal().argsort(descending=True)
    assert result.g_idx.dtype == torch.int32
    assert torch.equal(result.g_idx[order], torch.arange(K).int() // 32)


def test_static_groups_need_no_index_and_keep_the_scales_of_the_weight():
    settings = GptqSettings(group_size=32, desc_act=True, static_groups=True)
    result = quantize_gptq(W, H, settings).weight
    assert result.g_idx is None
    assert torch.equal(result.scales, quantize_absmax(W, 4, 32).scales)


def test_features_that_calibration_never_saw_become_zero():
    rows = X.clone()
    rows[:, [3, 40, 41, 191]] = 0
    for changes in ({}, {"desc_act": True}, {"symmetric": False}):
        result = quantize_gptq(W, hessian(rows), GptqSettings(group_size=32, **changes))
        back = result.weight.dequantize(4)
        assert result.stats.dead == 4
        assert back[:, [3, 40, 41, 191]].eq(0).all()
        assert result.stats.layer_error == pytest.approx(
            output_error(W, back, hessian(rows)), rel=1e-3
        )
        signal, noise = W.double().square().sum(), (W - back).double().square().sum()
        assert result.stats.sqnr_db == pytest.approx(float(10 * (signal / noise).log10()), abs=1e-3)


def test_a_singular_hessian_is_damped_until_it_works():
    few = hessian(inputs(20, K))
    result = quantize_gptq(W, few, GptqSettings(group_size=32, damp_percent=1e-10))
    assert result.stats.retries > 0
    assert result.stats.damp_percent == pytest.approx(1e-10 * 10**result.stats.retries)
    assert result.weight.dequantize(4).isfinite().all()


def test_a_hessian_that_no_damping_helps_is_an_error(error_of):
    bad = torch.eye(K) + 5 * (torch.ones(K, K) - torch.eye(K))
    error = error_of(quantize_gptq, W, bad, GptqSettings(group_size=32))
    assert error.code == "E-QUANT-HESSIAN"
    assert "damp_percent 0.01, 0.1, 1 (" in error.message


def test_numbers_that_overflow_are_an_error_and_not_nan(error_of):
    huge = torch.full((2, K), 3e38)
    error = error_of(quantize_gptq, huge, H, GptqSettings(group_size=32))
    assert error.code == "E-QUANT-HESSIAN"


def test_the_search_for_a_smaller_range_lowers_the_error_of_weights():
    w = weight(N, K).pow(3) * 400
    plain = quantize_gptq(w, torch.eye(K), GptqSettings(group_size=96)).stats
    searched = quantize_gptq(w, torch.eye(K), GptqSettings(group_size=96, mse=2.0)).stats
    assert searched.sqnr_db > plain.sqnr_db + 0.5
    assert searched.clipped > plain.clipped


def test_clipped_codes_are_counted():
    w = torch.zeros(1, 32)
    w[0, :2] = torch.tensor([7.5, -8.4])
    result = quantize_gptq(w, torch.eye(32), GptqSettings(group_size=32))
    assert result.stats.clipped == 0
    few = hessian(inputs(40, K))
    assert 0 < quantize_gptq(W, few, GptqSettings(group_size=16)).stats.clipped < 0.1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"group_size": 100}, "E-QUANT-GROUP"),
        ({"group_size": 0}, "E-QUANT-GROUP"),
        ({"group_size": -2}, "E-QUANT-GROUP"),
    ],
    ids=str,
)
def test_group_sizes_that_do_not_divide(changes, code, error_of):
    error = error_of(quantize_gptq, W, H, GptqSettings(**changes))
    assert error.code == code
    assert "Group sizes that do: 64, 32, 16, 8, -1" in error.message


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"bits": 3}, "E-QUANT-SCHEME"),
        ({"damp_percent": 0.0}, "E-QUANT-SETTING"),
        ({"damp_percent": 2.0}, "E-QUANT-SETTING"),
        ({"damp_percent": float("nan")}, "E-QUANT-SETTING"),
        ({"mse": -1.0}, "E-QUANT-SETTING"),
        ({"block_size": 0}, "E-QUANT-SETTING"),
    ],
    ids=str,
)
def test_settings_that_cannot_work(changes, code, code_of):
    assert code_of(GptqSettings, **changes) == code


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match="dampening"):
        dataclasses.replace(GptqSettings(), dampening=0.1)


def test_bad_weights_and_hessians(error_of):
    bad_weight, bad_hessian = W.clone(), H.clone()
    bad_weight[3, 5] = float("nan")
    bad_hessian[7, 7] = float("inf")
    settings = GptqSettings(group_size=32)
    assert error_of(quantize_gptq, bad_weight, H, settings).code == "E-QUANT-NAN"
    for h in (bad_hessian, H[:10, :10], torch.zeros(K, K)):
        assert error_of(quantize_gptq, W, h, settings).code == "E-QUANT-HESSIAN"


@pytest.mark.parametrize("k", [1, 5, 512, 700, 1300])
def test_the_factor_is_one(k):
    matrix = hessian(inputs(2 * k + 20, k)) + torch.eye(k)
    factor = matrix.clone()
    assert factor_upper_(factor)
    upper = factor.triu().double()
    assert torch.allclose(upper @ upper.T, matrix.double(), rtol=1e-4, atol=1e-3)


def test_a_matrix_that_is_not_positive_definite_has_no_factor():
    matrix = torch.eye(600)
    matrix[3, 3] = -1
    assert not factor_upper_(matrix)


@pytest.mark.parametrize("desc_act", [True, False])
def test_products_that_share_the_factors_get_the_same_bits(desc_act):
    settings = GptqSettings(group_size=32, desc_act=desc_act, static_groups=desc_act)
    shared = Factors(H)
    for seed in (1, 2):
        w = weight(N, K, seed=seed)
        alone, together = quantize_gptq(w, H, settings), quantize_gptq(w, shared, settings)
        assert torch.equal(alone.weight.codes, together.weight.codes)
        assert torch.equal(alone.weight.scales, together.weight.scales)
        assert alone.stats == together.stats


def test_a_hessian_is_factored_once(monkeypatch):
    counted = []
    monkeypatch.setattr(
        cholesky, "factor_upper_", lambda matrix: counted.append(1) or factor_upper_(matrix)
    )
    shared = Factors(H)
    for _ in range(3):
        quantize_gptq(W, shared, GptqSettings(group_size=32))
    assert len(counted) == 1
