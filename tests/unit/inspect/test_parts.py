"""isobit inspect: the counting, each piece by itself."""

from __future__ import annotations

import pytest
import torch

from isobit.shard.formats.scheme import WeightScheme
from isobit.shard.inspect.codes import CodeMatrix, grouping
from isobit.shard.inspect.damage import SATURATED_ERROR, SATURATED_WARNING
from isobit.shard.inspect.scales import scale_stats
from isobit.shard.inspect.tensors import NumberCount
from isobit.shard.names import place


def packed(codes, packing, bits):
    """Words of a file from codes [n, k], written apart from the code under test."""
    (n, k), p = codes.shape, 32 // bits
    shifts = torch.arange(0, 32, bits)
    if packing == "bytes":
        return (codes - 128).to(torch.int8)
    if packing == "along k":
        words = (codes.view(n, -1, p) << shifts).sum(2)
    elif packing == "rows of k":
        words = (codes.T.reshape(-1, p, n) << shifts[:, None]).sum(1)
    else:
        words = (codes.T.reshape(k, -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]] << shifts).sum(2)
    return words.int()


@pytest.mark.parametrize(
    ("packing", "bits"),
    [("along k", 4), ("along k", 8), ("rows of k", 4), ("rows of k", 8), ("awq", 4), ("bytes", 8)],
)
@pytest.mark.parametrize("shuffled", [False, True], ids=["consecutive", "shuffled"])
@pytest.mark.parametrize("group_size", [4, 16, 24, -1])
def test_constant_groups_equal_a_plain_comparison(packing, bits, shuffled, group_size):
    n, k, generator = 16, 56, torch.Generator().manual_seed(1)
    scheme = WeightScheme(format="gptq", bits=bits, group_size=group_size)
    groups = scheme.groups(k)
    index = torch.arange(k) // scheme.group_width(k)
    if shuffled:
        index = index[torch.randperm(k, generator=generator)]
    same = torch.randint(0, 1 << bits, (n, groups), generator=generator)
    chosen = torch.rand((n, groups), generator=generator) < 0.3
    varying = torch.randint(0, 1 << bits, (n, k), generator=generator)
    codes = torch.where(chosen[:, index], same[:, index], varying)
    expected = torch.full((n, groups), -1, dtype=torch.int16)
    for g in range(groups):
        low, high = codes[:, index == g].aminmax(dim=1)
        expected[:, g] = torch.where(low == high, low, -1)
    words = packed(codes, packing, bits)
    matrix = CodeMatrix(words=words, n=n, k=k, bits=bits, packing=packing)
    found = grouping(k, scheme, index.int() if shuffled else None)
    assert torch.equal(matrix.constant_groups(found), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_numbers_that_are_not_finite_are_counted(dtype):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3).to(dtype)
    values[3], values[500:502], values[700] = torch.nan, -torch.inf, torch.inf
    count = NumberCount()
    count.add(values)
    assert (count.nan, count.infinite) == (1, 3)
    assert count.largest == float(values[values.isfinite()].abs().max())


def test_scales_are_counted_by_kind():
    scales = torch.full((10, 10), 0.01, dtype=torch.float16)
    scales[0, :4] = torch.tensor([0.0, -0.5, 1e-5, torch.nan])
    scales[1, 0] = torch.inf
    stats = scale_stats(scales)
    counts = (stats.zeros, stats.negative, stats.subnormal, stats.nan, stats.infinite)
    assert counts == (1, 1, 1, 1, 1)
    assert (stats.low, stats.high) == (-0.5, float(scales[5, 5]))
    assert scale_stats(torch.full((2, 2), torch.nan)).median is None


@pytest.mark.parametrize(
    ("shrink", "low", "high"),
    [
        (1.0, -1.0, 0.02),
        (1.5, SATURATED_WARNING - 0.03, SATURATED_WARNING + 0.01),
        (3.0, SATURATED_ERROR - 0.06, SATURATED_ERROR + 0.02),
    ],
)
def test_where_the_limits_of_saturation_come_from(shrink, low, high):
    """Gaussian weights, groups of 128, a step from the largest magnitude or one too small."""
    weights = torch.randn((20_000, 128), generator=torch.Generator().manual_seed(0))
    step = weights.abs().amax(1, keepdim=True) / 7.5 / shrink
    codes = (weights / step + 8).round().clamp(0, 15)
    beyond = ((codes == 0) | (codes == 15)).float().mean() - 2 / 128
    assert low < beyond < high


def test_places_name_layers_while_they_are_few():
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(10)]
    assert place(names[:1]) == "model.layers.0.mlp.up_proj"
    assert place(names[:3]) == "model.layers.*.mlp.up_proj (layers 0, 1, 2)"
    assert place(names) == "model.layers.*.mlp.up_proj (10 layers)"
