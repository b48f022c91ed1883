"""The arithmetic of atoms: exact, and for every degree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.shard.plan.atoms import (
    atoms_of_rank,
    complete_subtrees,
    offsets,
    pad_atoms,
    ragged_atoms,
)

POWERS = st.sampled_from([1, 2, 4, 8, 16, 32])


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        (13696, 14336),
        (27392, 27648),
        (29568, 29696),
        (11008, 11264),
        (13824, 14336),
        (14336, 14336),
    ],
)
def test_padding_of_published_sizes(size, padded):
    """The table of intermediate sizes that people meet at group 128, cut for eight ranks."""
    assert sum(pad_atoms(size, 128, 8)) == padded


def test_ragged_atoms_of_107_groups():
    assert [n // 128 for n in ragged_atoms(13696, 128, 8)] == [14, 13, 13, 14, 13, 13, 14, 13]


def test_six_heads_over_eight_atoms_leave_two_empty():
    assert ragged_atoms(6, 1, 8).count(0) == 2


@given(units=st.integers(0, 400), unit=st.sampled_from([1, 32, 128]), atoms=POWERS)
def test_ragged_atoms_cover_exactly_and_are_even(units, unit, atoms):
    sizes = ragged_atoms(units * unit, unit, atoms)
    assert len(sizes) == atoms
    assert sum(sizes) == units * unit
    assert max(sizes) - min(sizes) <= unit


@given(units=st.integers(1, 400), atoms=POWERS, degree=st.integers(1, 32))
def test_ragged_ranks_differ_by_no_more_than_their_atoms_do(units, atoms, degree):
    degree = min(degree, atoms)
    at = offsets(ragged_atoms(units, 1, atoms))
    for rank in range(degree):
        owned = atoms_of_rank(atoms, degree, rank)
        share = units * len(owned) / atoms
        assert abs(at[owned.stop] - at[owned.start] - share) < 1.0001


@given(size=st.integers(1, 40000), unit=st.sampled_from([32, 64, 128]), atoms=POWERS)
def test_padding_is_the_least_that_makes_atoms_equal(size, unit, atoms):
    padded = sum(pad_atoms(size, unit, atoms))
    assert padded % (unit * atoms) == 0
    assert 0 <= padded - size < unit * atoms


@given(atoms=POWERS, degree=st.integers(1, 32))
def test_ranks_own_consecutive_atoms_without_gaps(atoms, degree):
    degree = min(degree, atoms)
    owned = [a for rank in range(degree) for a in atoms_of_rank(atoms, degree, rank)]
    assert owned == list(range(atoms))


def test_subtrees_at_degree_three():
    nodes = [complete_subtrees(8, atoms_of_rank(8, 3, rank)) for rank in range(3)]
    assert nodes == [[(0, 2), (2, 1)], [(3, 1), (4, 2)], [(6, 2)]]


@given(atoms=POWERS, begin=st.integers(0, 31), length=st.integers(1, 32))
def test_subtrees_cover_the_run_and_are_complete(atoms, begin, length):
    begin = min(begin, atoms - 1)
    owned = range(begin, min(atoms, begin + length))
    nodes = complete_subtrees(atoms, owned)
    assert [a for b, n in nodes for a in range(b, b + n)] == list(owned)
    assert all(n & (n - 1) == 0 and b % n == 0 for b, n in nodes)
