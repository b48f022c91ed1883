"""What ranks of a calibration are told, and how work is shared out among them."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from isobit.errors import EnvironmentFault, InputError
from isobit.runtime.calibration.job import (
    CalibrateSettings,
    CalibrationJob,
    job_from_message,
    share_out,
)
from isobit.runtime.calibration.rank import CalibrationRank
from isobit.runtime.collectives.gather import GatherCollectives
from isobit.runtime.transport import wire
from isobit.shard.model.spec import read_spec
from isobit.shard.plan.plan import PlanSettings, make_plan
from isobit.shard.quantize.layer import INPUTS
from isobit.shard.quantize.method import MethodSettings
from isobit.shard.quantize.scheme import QuantizeSettings
from isobit.shard.quantize.statistics import Statistics

from ...support import DENSE

JOB = CalibrationJob(
    model=DENSE,
    folder=Path("/nowhere/.out.calibration"),
    run="01234567",
    settings=CalibrateSettings(
        stored=QuantizeSettings(group_size=32, keep=("layers.0.*=8",)),
        method=MethodSettings(method="gptq", desc_act=True),
    ),
    samples=3,
    length=64,
    degree=2,
)


def test_a_job_survives_the_wire():
    assert job_from_message(wire.decode(wire.encode(JOB.message()))) == JOB


def test_a_job_of_another_version():
    with pytest.raises(InputError, match="E-WIRE"):
        job_from_message({**JOB.message(), "depth": 3})


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6])
def test_every_input_belongs_to_one_rank(degree):
    shares = share_out(read_spec(DENSE), degree)
    assert len(shares) == degree
    assert sorted(chain.from_iterable(shares)) == sorted(INPUTS)


def test_the_largest_share_is_no_larger_than_it_has_to_be():
    """Qwen1.5-14B: down_proj alone is more than half of the work."""
    spec = replace(read_spec(DENSE), hidden_size=5120, intermediate_size=13696)
    spec = replace(spec, heads=40, kv_heads=40, head_size=128)
    assert share_out(spec, 2) == [("down",), ("q", "o", "gate")]


def test_a_rank_that_does_not_see_the_folder():
    plan = make_plan(read_spec(DENSE), PlanSettings(degree=2))
    with pytest.raises(EnvironmentFault, match=r"E-CALIB-HOST rank 1 .*/nowhere"):
        CalibrationRank(JOB, 1, GatherCollectives(plan, 1))


def test_a_hessian_is_the_same_in_memory_of_its_own_or_in_that_of_the_sums():
    statistics = Statistics(1500)
    generator = torch.Generator().manual_seed(0)
    for sample in range(2):
        statistics.add(sample, torch.randn(40, 1500, generator=generator))
    copied = statistics.hessian()
    assert torch.equal(copied, copied.T)
    assert torch.equal(statistics.take_hessian(), copied)
