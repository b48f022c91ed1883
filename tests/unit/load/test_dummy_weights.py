"""Dummy weights: an element depends on its place alone, so every degree has the same model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isobit.errors import InputError
from isobit.runtime.settings.engine import LoadSettings, read_run_spec
from isobit.shard.formats.scheme import WeightScheme
from isobit.shard.load.sources import DummyWeights
from isobit.shard.plan.modules import LinearModule

from ...support import DENSE, INT4

N, K = 40, 96
MODULE = LinearModule(
    name="model.layers.0.mlp.up_proj",
    n=N,
    k=K,
    parallel="column",
    dimension="intermediate",
    bias=False,
)
WHOLE = (slice(0, N), slice(0, K))


def part(size: int) -> st.SearchStrategy[slice]:
    ends = st.tuples(st.integers(0, size), st.integers(0, size))
    return ends.map(lambda pair: slice(min(pair), max(pair)))


@given(rows=part(N), columns=part(K), bits=st.sampled_from([4, 8]))
def test_codes_of_a_slice_are_a_slice_of_the_codes(rows, columns, bits):
    scheme = WeightScheme(format="assumed", bits=bits, group_size=32)
    whole = DummyWeights().quantized(MODULE, scheme, *WHOLE).codes
    assert torch.equal(
        DummyWeights().quantized(MODULE, scheme, rows, columns).codes, whole[rows, columns]
    )
    assert int(whole.max()) < 2**bits


@given(rows=part(N), columns=part(K))
def test_dense_values_of_a_slice_are_a_slice_of_the_values(rows, columns):
    whole = DummyWeights().dense(MODULE, None, *WHOLE)
    assert torch.equal(DummyWeights().dense(MODULE, None, rows, columns), whole[rows, columns])
    assert 0.8 * K**-0.5 < float(whole.std()) < 1.2 * K**-0.5


def test_modules_differ():
    other = LinearModule(**{**vars(MODULE), "name": "model.layers.1.mlp.up_proj"})
    assert not torch.equal(
        DummyWeights().dense(MODULE, None, *WHOLE), DummyWeights().dense(other, None, *WHOLE)
    )


@pytest.mark.parametrize(
    ("model", "load"),
    [
        (DENSE, LoadSettings(format="pickle")),
        (DENSE, LoadSettings(quantization="int4")),
        (INT4, LoadSettings(format="dummy", quantization="int4")),
    ],
)
def test_settings_that_contradict_are_refused(model, load):
    with pytest.raises(InputError) as error:
        read_run_spec(model, load)
    assert error.value.code == "E-LOAD-FORMAT"
