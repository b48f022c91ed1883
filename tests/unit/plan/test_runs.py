"""Runs of input features: cut at groups and at atoms, the same at every degree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from isobit.shard.model.spec import ModelSpec, spec_from_config
from isobit.shard.plan.modules import LinearModule, atom_ends, feature_slice, layer_modules
from isobit.shard.plan.plan import PlanSettings, make_plan
from isobit.shard.plan.runs import Runs, make_runs

from ..configs import config, pack_quantized


@dataclass(frozen=True)
class Case:
    """One row-parallel weight: its group size, how it is cut, and the group of every feature."""

    spec: ModelSpec
    module: LinearModule
    width: int
    atoms: int
    layout: str
    groups: torch.Tensor


@st.composite
def cases(draw: st.DrawFn, shuffled: bool = False) -> Case:
    """Heads need not be whole groups; `shuffled` gives features to groups as act-order does."""
    kv_heads, queries_per_kv = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    width = draw(st.sampled_from([8, 16, 32]))
    spec = spec_from_config(
        config(
            num_attention_heads=kv_heads * queries_per_kv,
            num_key_value_heads=kv_heads,
            head_dim=draw(st.sampled_from([6, 8, 16, 24, 48])),
            intermediate_size=width * draw(st.integers(1, 40)),
            quantization_config=pack_quantized(group_size=width),
        ),
        None,
    )
    module = layer_modules(spec, 0)[draw(st.sampled_from(["o", "down"]))]
    groups = torch.arange(module.k) // width
    if shuffled:
        seed = draw(st.integers(0, 1 << 30))
        groups = groups[torch.randperm(module.k, generator=torch.Generator().manual_seed(seed))]
    atoms, layout = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["pad", "ragged"]))
    return Case(spec, module, width, atoms, layout, groups)


def runs_of_rank(case: Case, degree: int, rank: int) -> tuple[Runs, range, int]:
    """A rank's runs, its atoms, and the feature of the whole weight where its slice begins."""
    settings = PlanSettings(degree=degree, atoms=case.atoms, layout=case.layout)  # type: ignore[arg-type]
    plan = make_plan(case.spec, settings)
    own = feature_slice(plan, case.module, rank)
    groups = case.groups[own.offset : own.offset + own.true]
    runs = make_runs(atom_ends(plan, case.module, rank), groups, case.width)
    return runs, plan.owned(rank), own.offset


def whole(case: Case, degree: int) -> list[tuple[int, int, list[int]]]:
    """(atom, group, features of the whole weight in order) of every run of every rank."""
    described = []
    for rank in range(degree):
        runs, owned, offset = runs_of_rank(case, degree, rank)
        size = runs.spans[-1][1] if runs.spans else 0
        order = torch.arange(size) if runs.order is None else runs.order
        for atom, (first, last) in zip(owned, pairwise(runs.segments), strict=True):
            for (begin, end), group in zip(
                runs.spans[first:last], runs.groups[first:last], strict=True
            ):
                described.append((atom, group, (offset + order[begin:end]).tolist()))
    return described


def atom_of_feature(case: Case) -> list[int]:
    settings = PlanSettings(atoms=case.atoms, layout=case.layout)  # type: ignore[arg-type]
    ends = atom_ends(make_plan(case.spec, settings), case.module, 0)
    return [a for a, (begin, end) in enumerate(pairwise(ends)) for _ in range(begin, end)]


ANY = st.booleans().flatmap(lambda shuffled: cases(shuffled=shuffled))


@given(case=ANY, degree=st.integers(1, 8))
def test_runs_cover_every_feature_and_straddle_neither_groups_nor_atoms(case, degree):
    atoms, groups = atom_of_feature(case), case.groups.tolist()
    described = whole(case, min(degree, case.atoms))
    assert sorted(f for _, _, features in described for f in features) == list(range(len(atoms)))
    for atom, group, features in described:
        assert features
        assert {atoms[f] for f in features} == {atom}
        assert {groups[f] if f < len(groups) else -1 for f in features} == {group}


@given(case=ANY, degree=st.integers(2, 8))
def test_runs_of_all_ranks_are_those_of_degree_one(case, degree):
    assert whole(case, min(degree, case.atoms)) == whole(case, 1)


@given(case=ANY)
def test_a_group_is_one_run_per_atom(case):
    true = [(atom, group) for atom, group, _ in whole(case, 1) if group >= 0]
    assert len(set(true)) == len(true)


@given(case=cases())
def test_unshuffled_features_keep_their_order(case):
    runs, _, _ = runs_of_rank(case, 1, 0)
    assert runs.order is None
    assert [begin for begin, _ in runs.spans] == [0, *(end for _, end in runs.spans[:-1])]


@given(case=cases())
def test_padding_is_cut_like_groups(case):
    padded = [features for _, group, features in whole(case, 1) if group < 0]
    assert all(len(features) <= case.width for features in padded)


def test_three_heads_of_48_over_groups_of_32():
    """The group 32..64 straddles two heads and becomes two runs; 96 ends a head and a group."""
    runs = make_runs([0, 48, 96, 144], torch.arange(144) // 32, 32)
    assert runs.spans == [(0, 32), (32, 48), (48, 64), (64, 96), (96, 128), (128, 144)]
    assert runs.groups == [0, 1, 1, 2, 3, 4]
    assert runs.segments == [0, 2, 4, 6]


def test_empty_atoms_own_no_run():
    runs = make_runs([0, 0, 32, 32], torch.full((32,), 2), 32)
    assert (runs.spans, runs.segments) == ([(0, 32)], [0, 0, 1, 1])


def test_a_rank_without_features_has_no_run():
    runs = make_runs([0, 0], torch.empty(0, dtype=torch.int64), 32)
    assert (runs.spans, runs.groups, runs.segments) == ([], [], [0, 0])
