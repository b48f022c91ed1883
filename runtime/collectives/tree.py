"""The one order of additions: a balanced binary tree over atoms, the same at every degree.

With 8 atoms: ((a0+a1)+(a2+a3))+((a4+a5)+(a6+a7)), in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...shard.plan.atoms import complete_subtrees

Node = tuple[int, int]


def subtree_merges(atoms: int, owned: range) -> list[int]:
    """How many sums of two neighbours follow each owned atom, when they are added on the way.

    What is left after the last atom are the complete subtrees, in order.
    """
    return [
        (count & -count).bit_length() - 1
        for _, length in complete_subtrees(atoms, owned)
        for count in range(1, length + 1)
    ]


def sum_subtrees(partials: torch.Tensor, owned: range, atoms: int) -> list[torch.Tensor]:
    """Add up each complete subtree of a rank's atoms.

    `partials` float32 [A, ...] holds one partial sum per owned atom. Returns one tensor per
    subtree, in the order of complete_subtrees.
    """
    leaves = {(owned.start + i, 1): partials[i] for i in range(len(owned))}
    return [_node(leaves, node) for node in complete_subtrees(atoms, owned)]


def sum_root(nodes: Sequence[Node], values: Sequence[torch.Tensor], atoms: int) -> torch.Tensor:
    """Finish the tree from subtrees that together cover every atom."""
    return _node(dict(zip(nodes, values, strict=True)), (0, atoms))


def _node(known: dict[Node, torch.Tensor], node: Node) -> torch.Tensor:
    if node in known:
        return known[node]
    begin, length = node
    half = length // 2
    assert half, f"atom {begin} is owned by no rank"
    return _node(known, (begin, half)) + _node(known, (begin + half, half))
