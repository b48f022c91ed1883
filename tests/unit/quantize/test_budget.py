"""Bits of a weight against the tensors that store it; widths that --keep fixes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.shard.formats.scheme import CHANNEL, WeightScheme
from isobit.shard.plan.modules import LinearModule
from isobit.shard.quantize.budget import width_choices
from isobit.shard.quantize.fused import fused_products, stored_bits
from isobit.shard.quantize.grid import QuantizedWeight
from isobit.shard.quantize.output import quantization_config
from isobit.shard.quantize.scheme import QuantizeSettings, pack
from isobit.shard.quantize.source import open_dense

from ...support import DENSE


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 70),
    groups=st.integers(1, 5),
    width=st.sampled_from([8, 24, 32]),
    bits=st.sampled_from([4, 8]),
    channel=st.booleans(),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_bits_are_those_of_the_tensors_written(n, groups, width, bits, channel, symmetric, dtype):
    k, groups = groups * width, 1 if channel else groups
    weight = QuantizedWeight(
        codes=torch.zeros(n, k, dtype=torch.uint8),
        scales=torch.ones(n, groups, dtype=dtype),
        zeros=None if symmetric else torch.zeros(n, groups, dtype=torch.uint8),
    )
    scheme = WeightScheme(
        format="pack-quantized",
        bits=bits,
        group_size=CHANNEL if channel else width,
        symmetric=symmetric,
    )
    tensors = pack("m", weight, scheme)
    del tensors["m.weight_shape"]
    written = sum(8 * tensor.nbytes for tensor in tensors.values())
    module = LinearModule(
        name="m", n=n, k=k, parallel="column", dimension="intermediate", bias=False
    )
    assert stored_bits(module, scheme, 8 * dtype.itemsize) == written
    assert stored_bits(module, None, 8 * dtype.itemsize) == 8 * dtype.itemsize * n * k


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_bits_of_gptq_and_awq_have_scales_of_16_bits(name):
    weight = QuantizedWeight(
        codes=torch.zeros(64, 96, dtype=torch.uint8),
        scales=torch.ones(64, 3, dtype=torch.float16),
        zeros=None,
    )
    scheme = WeightScheme(format=name, bits=4, group_size=32)
    written = sum(8 * tensor.nbytes for tensor in pack("m", weight, scheme).values())
    module = LinearModule(
        name="m", n=64, k=96, parallel="column", dimension="intermediate", bias=False
    )
    assert stored_bits(module, scheme, 32) == written


def test_widths_are_those_that_the_format_stores():
    source = open_dense(DENSE)
    settings = QuantizeSettings(group_size=32, format="awq")
    choices = width_choices(source, fused_products(source.spec), settings, 6)
    assert {tuple(widths) for widths in choices.stored.values()} == {(4, 16)}


def test_a_width_kept_for_one_holds_for_what_is_fused_with_it():
    source = open_dense(DENSE)
    kept = QuantizeSettings(group_size=32, keep=("layers.1.*.k_proj=8", "*.down_proj=4"))
    choices = width_choices(source, fused_products(source.spec), kept, 6)
    fixed = {name: widths for name, widths in choices.stored.items() if len(widths) == 1}
    assert [*fixed.pop("model.layers.1.self_attn.q_proj")] == [8]
    assert [*fixed] == [f"model.layers.{layer}.mlp.down_proj" for layer in range(5)]
    assert len(choices.free) == 4 * 5 - 6
    assert {each.name for each in choices.free}.isdisjoint(fixed)


def test_every_product_is_in_one_set_of_fused_products():
    spec = open_dense(DENSE).spec
    names = [name for each in fused_products(spec) for name in each.names]
    assert len(names) == len(set(names)) == 7 * spec.layers
    sizes = [len(each.modules) for each in fused_products(spec)]
    assert sizes == [3, 1, 2, 1] * spec.layers


@pytest.mark.parametrize("dense", [(), ("model.layers.0.self_attn.o_proj",)])
def test_one_scheme_is_that_of_all_linear_modules(dense):
    four = WeightScheme(format="pack-quantized", bits=4, group_size=32)
    names = [name for each in fused_products(open_dense(DENSE).spec) for name in each.names]
    config = quantization_config({name: None if name in dense else four for name in names})
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert config["ignore"] == ["lm_head", *dense]
