"""Plans: what is cut where, for which rank, and what is refused."""

import json

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.errors import InputError
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.plan import PlanSettings, ShardPlan, make_plan

from ..configs import QWEN_14B, config, pack_quantized


def plan_of(settings=None, **changes) -> ShardPlan:
    spec = spec_from_config(config(**changes), None)
    return make_plan(spec, settings or PlanSettings())


def test_qwen_14b_is_padded_to_14336():
    plan = make_plan(spec_from_config(QWEN_14B, None), PlanSettings(degree=2))
    report = plan.report()["dims"]["intermediate"]
    assert (report["true"], report["padded"], report["unit"]) == (13696, 14336, 128)
    assert list(report["atom_sizes"]) == [14 * 128] * 8
    assert report["per_rank"] == [7168, 7168]


def test_qwen_14b_ragged_keeps_13696_in_atoms_of_13_and_14_groups():
    settings = PlanSettings(degree=4, layout="ragged")
    plan = make_plan(spec_from_config(QWEN_14B, None), settings)
    report = plan.report()["dims"]["intermediate"]
    assert report["padded"] == 13696
    assert {size // 128 for size in report["atom_sizes"]} == {13, 14}
    assert sum(report["per_rank"]) == 13696


def test_degree_eight_leaves_ranks_without_heads():
    plan = plan_of(PlanSettings(degree=8))
    heads = [plan.heads.slice(plan.owned(rank)).size for rank in range(8)]
    assert heads.count(0) == 2
    for rank in range(8):
        assert (len(plan.kv_heads(rank)) == 0) == (heads[rank] == 0)


@given(
    degree=st.integers(1, 8),
    kv_heads=st.sampled_from([1, 2, 3, 6]),
    layout=st.sampled_from(["pad", "ragged"]),
)
def test_every_query_head_finds_its_kv_head(degree, kv_heads, layout):
    plan = plan_of(PlanSettings(degree=degree, layout=layout), num_key_value_heads=kv_heads)
    for rank in range(degree):
        queries, kept = plan.heads.slice(plan.owned(rank)), plan.kv_heads(rank)
        for head, local in enumerate(plan.head_to_kv(rank), queries.offset):
            assert kept[local] == head * kv_heads // 6


@given(degree=st.integers(1, 8), layout=st.sampled_from(["pad", "ragged"]))
def test_round_trip_through_json_and_msgpack(degree, layout):
    plan = plan_of(PlanSettings(degree=degree, layout=layout))
    for copy in (
        json.loads(json.dumps(plan.to_dict())),
        msgpack.unpackb(msgpack.packb(plan.to_dict())),
    ):
        assert ShardPlan.from_dict(copy) == plan
        assert ShardPlan.from_dict(copy).content_hash() == plan.content_hash()


def test_hash_tells_degrees_and_layouts_apart():
    hashes = {
        plan_of(PlanSettings(degree=degree, layout=layout)).content_hash()
        for degree in (1, 2, 3)
        for layout in ("pad", "ragged")
    }
    assert len(hashes) == 6


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (PlanSettings(degree=0), "E-PLAN-DEGREE"),
        (PlanSettings(degree=9), "E-PLAN-DEGREE"),
        (PlanSettings(atoms=6), "E-PLAN-ATOMS"),
        (PlanSettings(layout="square"), "E-PLAN-LAYOUT"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_no_plan_can_have(settings, code):
    with pytest.raises(InputError) as error:
        plan_of(settings)
    assert error.value.code == code


def test_degree_above_atoms_names_the_way_out():
    with pytest.raises(InputError, match="--atoms 16"):
        plan_of(PlanSettings(degree=9))


def test_edited_intermediate_size_names_numbers_and_the_legal_one():
    spec = spec_from_config({**QWEN_14B, "intermediate_size": 14436}, None)
    with pytest.raises(InputError) as error:
        make_plan(spec, PlanSettings(), 13696)
    assert error.value.code == "E-PLAN-GROUP"
    assert error.value.message == (
        "layers.*.mlp.down_proj: intermediate_size 14436 is not a multiple of group_size 128 "
        "(112.78 groups). The tensors say 13696. Did you mean 14336 (= 112 x 128)?"
    )


def test_dense_and_per_channel_models_bind_no_group():
    assert plan_of().intermediate.padded == 512
    channel = pack_quantized(bits=8, group_size=-1, strategy="channel")
    assert plan_of(quantization_config=channel).intermediate.padded == 512
    odd = plan_of(PlanSettings(layout="ragged"), intermediate_size=100)
    assert odd.intermediate.padded == 100
