"""SmoothQuant: scales by the paper's formula, the search of alpha by a loop in float64."""

from __future__ import annotations

import pytest
import torch

from isobit.shard.quantize.smoothquant import SmoothSettings, search_alpha, smooth_scales

from .calibration import inputs, weight

K = 64
X = inputs(100, K)
X[:, 5] *= 60
WEIGHTS = [weight(24, K), 2 * weight(40, K, seed=2)]
HIGHEST = X.abs().amax(0)


def round_trip(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (values / scale).round().clamp(-128, 127) * scale


def error(scales: torch.Tensor, static: bool = False) -> float:
    """Share of error in the outputs of W8A8 products, summed in float64.

    Values are rounded in float32, as they are in use: the largest of a row of weights, and that of
    static activations, lie on a tie, 127.5, which float64 would break the other way.
    """
    x = X / scales
    highest = x.abs().max() / 127.5 if static else x.abs().amax(1, keepdim=True) / 127
    smooth = round_trip(x, highest).double()
    wrong, energy = 0.0, 0.0
    for w in WEIGHTS:
        wide = w * scales
        back = round_trip(wide, wide.abs().amax(1, keepdim=True) / 127.5).double()
        wanted = X.double() @ w.double().T
        wrong += float((smooth @ back.T - wanted).square().sum())
        energy += float(wanted.square().sum())
    return wrong / energy


def test_scales_are_those_of_the_paper():
    highest = torch.cat(WEIGHTS).double().abs().amax(0)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        wanted = HIGHEST.double().pow(alpha) / highest.pow(1 - alpha)
        assert torch.allclose(smooth_scales(WEIGHTS, HIGHEST, alpha).double(), wanted, rtol=1e-5)


@pytest.mark.parametrize("static", [True, False])
def test_the_search_finds_the_least_error(static):
    settings = SmoothSettings(static=static)
    found = search_alpha(WEIGHTS, HIGHEST, X, settings)
    errors = {
        alpha: error(smooth_scales(WEIGHTS, HIGHEST, alpha), static) for alpha in settings.alphas
    }
    assert found.error == pytest.approx(min(errors.values()), rel=1e-4)
    assert errors[found.alpha] <= min(errors.values()) * 1.0001
    assert found.error_unscaled == pytest.approx(error(torch.ones(K), static), rel=1e-4)
    assert found.error < 0.5 * found.error_unscaled
    assert found.input_scale == pytest.approx(float((HIGHEST / found.scales).max()) / 127.5)


def test_the_search_is_never_worse_than_no_smoothing():
    highest = torch.ones(K)
    highest[:3] = 1e4
    settings = SmoothSettings(alphas=(0.9, 1.0))
    found = search_alpha(WEIGHTS, highest, inputs(100, K).clamp(-1, 1), settings)
    assert found.alpha is None
    assert found.error == found.error_unscaled
    assert torch.equal(found.scales, torch.ones(K))


def test_one_alpha_is_taken_as_it_is():
    found = search_alpha(WEIGHTS, HIGHEST, X, SmoothSettings(alphas=(0.1,)))
    assert found.alpha == 0.1
    assert torch.equal(found.scales, smooth_scales(WEIGHTS, HIGHEST, 0.1))


def test_features_that_are_always_zero_get_scale_1():
    highest = HIGHEST.clone()
    highest[3] = 0
    assert smooth_scales(WEIGHTS, highest, 0.5)[3] == 1
    nothing = [w * (torch.arange(K) != 7) for w in WEIGHTS]
    assert smooth_scales(nothing, HIGHEST, 0.5).isfinite().all()


def test_bad_input_has_a_code(code_of):
    assert code_of(SmoothSettings, alphas=(0.5, 1.5)) == "E-QUANT-SETTING"
    assert code_of(SmoothSettings, alphas=()) == "E-QUANT-SETTING"
    assert code_of(search_alpha, WEIGHTS, HIGHEST, X[:0], SmoothSettings()) == "E-QUANT-EMPTY"
    nan = WEIGHTS[0] * float("nan")
    assert code_of(search_alpha, [nan], HIGHEST, X, SmoothSettings()) == "E-QUANT-NAN"
