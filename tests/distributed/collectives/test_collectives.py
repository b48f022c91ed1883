"""The tree of additions over real processes: numpy's float32 tree, bit for bit, on every rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.runtime.collectives.tree import sum_root, sum_subtrees
from isobit.shard.model.spec import spec_from_config
from isobit.shard.plan.atoms import atoms_of_rank, complete_subtrees
from isobit.shard.plan.plan import PlanSettings, make_plan

from ...support import ROOT
from ...unit.configs import config
from ..numbers import numpy_tree, wild

ATOMS = 8


GROUPS = {"1": 1, "2": 2, "3": 3, "4": 4, "leave": 2}
CALLS = {name: wild((3, ATOMS, 5, 37), seed) for seed, name in enumerate(GROUPS)}


@pytest.fixture(scope="module")
def groups(tmp_path_factory) -> dict[str, Path]:
    """The folders of all groups of ranks, after they ran."""
    top = tmp_path_factory.mktemp("groups")
    folders = {name: top / name for name in GROUPS}
    for name, folder in folders.items():
        folder.mkdir()
        settings = PlanSettings(degree=GROUPS[name], atoms=ATOMS)
        plan = make_plan(spec_from_config(config(), None), settings)
        (folder / "plan.json").write_text(json.dumps(plan.to_dict()))
        np.save(folder / "partials.npy", CALLS[name])
    command = [
        sys.executable,
        "-m",
        "tests.distributed.collectives.collective_ranks",
        *folders.values(),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=230)
    return folders


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_all_reduce_is_the_tree_on_every_rank(degree, groups):
    wanted = np.stack([numpy_tree(partials) for partials in CALLS[str(degree)]])
    for rank in range(degree):
        sums = np.load(groups[str(degree)] / f"sums-{rank}.npy")
        assert sums.dtype == np.float32
        assert sums.tobytes() == wanted.tobytes(), rank


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_all_gather_returns_every_tensor_in_the_order_of_ranks(degree, groups):
    for rank in range(degree):
        gathered = np.load(groups[str(degree)] / f"gathered-{rank}.npy")
        assert gathered.tolist() == [[[r, -r], [10 * r, 1]] for r in range(degree)]


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_the_library_sums_the_same_numbers_in_some_order(degree, groups):
    wanted = CALLS[str(degree)][-1]
    for rank in range(degree):
        total = np.load(groups[str(degree)] / f"library-{rank}.npy")
        close = np.abs(total - wanted.sum(axis=0)) <= 1e-5 * np.abs(wanted).sum(axis=0)
        assert close.all(), rank


def test_a_rank_that_left_is_an_error_with_operation_number_and_site(groups):
    fault = (groups["leave"] / "fault-0.txt").read_text()
    assert fault.startswith("E-COLL-FAILED rank 0: all_gather number 2 at site 2 failed: ")


def test_the_numbers_of_these_tests_tell_orders_apart():
    """Otherwise the tests here would prove nothing."""
    leaves = wild((ATOMS, 5, 37), seed=1)
    forward, backward = leaves[0], leaves[-1]
    for atom in range(1, ATOMS):
        forward = forward + leaves[atom]
        backward = backward + leaves[-1 - atom]
    by_rank = leaves[0:3].sum(axis=0) + leaves[3:6].sum(axis=0) + leaves[6:8].sum(axis=0)
    for other in (forward, backward, by_rank):
        assert (other != numpy_tree(leaves)).mean() > 0.2


@settings(deadline=None)
@given(
    atoms=st.sampled_from([1, 2, 4, 8, 16]), degree=st.integers(1, 16), seed=st.integers(0, 1 << 30)
)
def test_the_arithmetic_of_every_degree_is_the_tree(atoms, degree, seed):
    """All degrees, 5 and 8 among them, without processes."""
    degree, leaves = min(degree, atoms), wild((atoms, 3, 4), seed)
    nodes, values = [], []
    for rank in range(degree):
        owned = atoms_of_rank(atoms, degree, rank)
        partials = torch.from_numpy(leaves[owned.start : owned.stop])
        nodes += complete_subtrees(atoms, owned)
        values += sum_subtrees(partials, owned, atoms)
    total = sum_root(nodes, values, atoms)
    assert total.numpy().tobytes() == numpy_tree(leaves).tobytes()


def test_the_order_in_which_subtrees_arrive_does_not_matter():
    leaves, owned = wild((ATOMS, 4), seed=2), [atoms_of_rank(ATOMS, 3, rank) for rank in range(3)]
    nodes, values = [], []
    for atoms in reversed(owned):
        nodes += complete_subtrees(ATOMS, atoms)
        values += sum_subtrees(torch.from_numpy(leaves[atoms.start : atoms.stop]), atoms, ATOMS)
    assert sum_root(nodes, values, ATOMS).numpy().tobytes() == numpy_tree(leaves).tobytes()


def test_an_atom_that_no_rank_owns_is_a_broken_invariant():
    with pytest.raises(AssertionError, match="atom 6 is owned by no rank"):
        sum_root([(0, 4), (4, 2)], [torch.zeros(1)] * 2, ATOMS)
