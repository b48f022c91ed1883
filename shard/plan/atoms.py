"""Cutting a dimension into atoms, once for every degree. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence


def pad_atoms(size: int, unit: int, atoms: int) -> list[int]:
    """Equal atoms that cover `size`: each is a multiple of `unit`; the excess is padding.

    >>> sum(pad_atoms(13696, 128, 8))
    14336
    """
    return [unit * -(-size // (atoms * unit))] * atoms


def ragged_atoms(size: int, unit: int, atoms: int) -> list[int]:
    """Atoms that differ by at most one unit and need no padding.

    The longer atoms are spread evenly, so that any run of consecutive atoms is balanced. Where
    `size` is not a multiple of `unit` the last unit is shorter.

    >>> [n // 128 for n in ragged_atoms(13696, 128, 8)]
    [14, 13, 13, 14, 13, 13, 14, 13]
    """
    units = -(-size // unit)
    base, longer = divmod(units, atoms)
    sizes = [unit * (base + (i * longer % atoms < longer)) for i in range(atoms)]
    last = max((i for i in range(atoms) if sizes[i]), default=0)
    sizes[last] -= units * unit - size
    return sizes


def atoms_of_rank(atoms: int, degree: int, rank: int) -> range:
    """The consecutive atoms that `rank` of `degree` owns; the first ranks own the longer runs.

    >>> [len(atoms_of_rank(8, 3, rank)) for rank in range(3)]
    [3, 3, 2]
    """
    base, longer = divmod(atoms, degree)
    begin = rank * base + min(rank, longer)
    return range(begin, begin + base + (rank < longer))


def offsets(sizes: Sequence[int]) -> list[int]:
    """Running sums, starting at 0: one more entry than `sizes`."""
    sums = [0]
    for size in sizes:
        sums.append(sums[-1] + size)
    return sums


def complete_subtrees(atoms: int, owned: range) -> list[tuple[int, int]]:
    """Cover a run of atoms with the largest complete subtrees of the balanced binary tree.

    `atoms` is a power of two. Returns (begin, length) pairs in order; each length is a power of two
    that divides begin. A rank adds up each of its subtrees alone, and nothing else.

    >>> complete_subtrees(8, range(3, 6))
    [(3, 1), (4, 2)]
    """
    nodes, begin = [], owned.start
    while begin < owned.stop:
        length = begin & -begin if begin else atoms
        while length > owned.stop - begin:
            length //= 2
        nodes.append((begin, length))
        begin += length
    return nodes
