"""AWQ: the search in float64, its clipping by brute force, and functions that folding preserves."""

from __future__ import annotations

import pytest
import torch

from isobit.shard.quantize.absmax import quantize_absmax
from isobit.shard.quantize.awq import AwqSettings, search_scales
from isobit.shard.quantize.clipping import ClipSettings, clip, search_bounds

from .calibration import hessian, inputs, output_error, weight

K, GROUP = 128, 32
X = inputs(300, K)
H = hessian(X)
WEIGHTS = [weight(48, K), 3 * weight(20, K, seed=2)]
MEAN = X.abs().mean(0)


def rounded(w: torch.Tensor, scales: torch.Tensor, symmetric: bool = False) -> torch.Tensor:
    """A weight scaled, quantized and scaled back."""
    result = quantize_absmax(w * scales, 4, GROUP, symmetric=symmetric)
    return result.dequantize(4) / scales


def error(weights: list[torch.Tensor], scales: torch.Tensor, symmetric: bool = False) -> float:
    """Output error of several products over their output, in float64."""
    wide, total, energy = H.double(), 0.0, 0.0
    for w in weights:
        e = (w - rounded(w, scales, symmetric)).double()
        total += float((e @ wide * e).sum())
        energy += float((w.double() @ wide * w.double()).sum())
    return total / energy


@pytest.mark.parametrize("duo", [True, False, "both"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_finds_the_least_error_of_its_grid(duo, symmetric):
    settings = AwqSettings(group_size=GROUP, duo_scaling=duo, symmetric=symmetric)
    found = search_scales(WEIGHTS, MEAN, settings, hessian=H)
    groups = torch.cat(WEIGHTS).abs().view(-1, GROUP)
    means = (groups / (groups.amax(1, True) + 1e-6)).view(-1, K).mean(0)
    grid = []
    for step in range(21):
        plain = MEAN.pow(step / 20)
        grid += [plain] if duo is not True else []
        grid += [plain / (means.pow(1 - step / 20) + 1e-4)] if duo is not False else []
    tried = [torch.ones(K)] + [s / (s.max() * s.min()).sqrt() for s in grid]
    errors = [error(WEIGHTS, scales, symmetric) for scales in tried]
    assert found.error == pytest.approx(min(errors), rel=1e-3)
    assert found.error == pytest.approx(error(WEIGHTS, found.scales, symmetric), rel=1e-3)
    assert found.error_unscaled == pytest.approx(errors[0], rel=1e-3)
    assert found.error < 0.9 * found.error_unscaled


@pytest.mark.parametrize("seed", range(5))
def test_the_search_is_never_worse_than_no_scaling(seed):
    w = weight(16, K, seed=seed)
    identity = torch.eye(K)
    found = search_scales([w], torch.ones(K), AwqSettings(group_size=GROUP), hessian=identity)
    assert found.error <= found.error_unscaled
    assert (found.ratio is None) == torch.equal(found.scales, torch.ones(K))


def test_inputs_and_their_hessian_give_the_same_scales():
    settings = AwqSettings(group_size=GROUP)
    by_hessian = search_scales(WEIGHTS, MEAN, settings, hessian=H)
    by_inputs = search_scales(WEIGHTS, MEAN, settings, inputs=X)
    assert by_hessian.ratio == by_inputs.ratio
    assert by_hessian.error == pytest.approx(by_inputs.error, rel=1e-3)


def test_a_feature_that_is_always_zero_does_no_harm():
    mean = MEAN.clone()
    mean[[0, 77]] = 0
    for duo in (True, False):
        settings = AwqSettings(group_size=GROUP, duo_scaling=duo)
        found = search_scales(WEIGHTS, mean, settings, hessian=H)
        assert found.scales.isfinite().all()
        assert found.scales.min() > 1e-2


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_bound_is_the_best_of_the_grid_for_its_group(symmetric):
    w = weight(6, K).pow(3) * 400
    settings = ClipSettings(group_size=GROUP, symmetric=symmetric)
    bounds = search_bounds(w, H, settings)
    assert bounds.shape == (6, K // GROUP)
    for row in range(6):
        for group in range(K // GROUP):
            span = slice(group * GROUP, (group + 1) * GROUP)
            part, block = w[row : row + 1, span], H[span, span].double()
            costs = {}
            for step in range(10):
                bound = float(part.abs().max()) * (1 - step / 20)
                cut = part.clamp(-bound, bound)
                back = quantize_absmax(cut, 4, -1, symmetric=symmetric).dequantize(4)
                e = (back - part).double()
                costs[bound] = float((e @ block * e).sum())
            chosen = min(costs, key=lambda bound: abs(bound - float(bounds[row, group])))
            assert costs[chosen] <= min(costs.values()) * (1 + 1e-3)


def test_clipping_lowers_the_error_of_weights_with_outliers():
    w = weight(32, K).pow(3) * 400
    settings = ClipSettings(group_size=GROUP)
    clipped = clip(w, search_bounds(w, H, settings))
    ones = torch.ones(K)
    before = output_error(w, rounded(w, ones), H)
    assert output_error(w, rounded(clipped, ones), H) < 0.98 * before


def test_clip_keeps_dtype_and_what_is_within_bounds():
    w = weight(4, 8, torch.bfloat16)
    assert torch.equal(clip(w, torch.full((4, 2), 10.0)), w)
    cut = clip(w, torch.full((4, 2), 0.01))
    assert cut.dtype == torch.bfloat16
    assert cut.abs().max() <= torch.tensor(0.01).bfloat16()


@pytest.mark.parametrize(
    "settings", [{"bits": 5}, {"n_grid": 0}, {"duo_scaling": "maybe"}, {"bits": 16}], ids=str
)
def test_settings_that_cannot_work(settings, code_of):
    assert code_of(AwqSettings, **settings) in ("E-QUANT-SCHEME", "E-QUANT-SETTING")


def test_bad_input_has_a_code(code_of):
    settings = AwqSettings(group_size=GROUP)
    odd = AwqSettings(group_size=100)
    nan = WEIGHTS[0].clone()
    nan[0, 0] = float("nan")
    assert code_of(search_scales, WEIGHTS, MEAN, odd, hessian=H) == "E-QUANT-GROUP"
    assert code_of(search_scales, [nan], MEAN, settings, hessian=H) == "E-QUANT-NAN"
    assert code_of(search_scales, WEIGHTS, MEAN, settings) == "E-QUANT-SETTING"
    assert code_of(search_scales, WEIGHTS, MEAN, settings, inputs=X[:0]) == "E-QUANT-EMPTY"
    assert code_of(search_scales, WEIGHTS, MEAN, settings, hessian=H[:9, :9]) == "E-QUANT-HESSIAN"
    assert code_of(search_bounds, nan, H, ClipSettings(group_size=GROUP)) == "E-QUANT-NAN"
    assert code_of(ClipSettings, max_shrink=1.0) == "E-QUANT-SETTING"
