"""Segments added up inside the kernel: numpy's float32 tree over the segments, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from isobit.errors import InputError
from isobit.kernels import ops
from isobit.kernels.weights import layout
from isobit.runtime.collectives.tree import subtree_merges
from isobit.shard.plan.atoms import atoms_of_rank, complete_subtrees

Maker = Callable[..., layout.PackedWeight]
ATOMS = 8
RUNS = [(i, i + 16) for i in range(0, 272, 16)]
SEGMENTS = [0, 2, 2, 5, 8, 9, 12, 14, 17]


def numpy_tree(leaves: list[np.ndarray]) -> np.ndarray:
    if len(leaves) == 1:
        return leaves[0]
    half = len(leaves) // 2
    return numpy_tree(leaves[:half]) + numpy_tree(leaves[half:])


@pytest.mark.parametrize("rows", [1, 9, 513])
@pytest.mark.parametrize("kind", ["int4", "int8", "bfloat16"])
@pytest.mark.usefixtures("isa")
def test_what_is_left_are_the_complete_subtrees(kind: str, rows: int, quantized: Maker) -> None:
    if kind == "bfloat16":
        ends = [RUNS[end - 1][1] if end else 0 for end in SEGMENTS]
        weight = layout.pack_dense(torch.randn(83, 272).bfloat16(), segments=ends)
    else:
        weight = quantized(83, RUNS, SEGMENTS, bits=int(kind[3]), zeros=True)
    x = torch.randn(rows, 272).bfloat16()
    leaves = list(ops.linear(x, weight).numpy())
    for degree in (1, 2, 3, 5, 8):
        for rank in range(degree):
            owned = atoms_of_rank(ATOMS, degree, rank)
            merges = [0] * owned.start + subtree_merges(ATOMS, owned)
            merges += [0] * (ATOMS - len(merges))
            out = ops.linear(x, weight, torch.tensor(merges, dtype=torch.int32))
            subtrees = complete_subtrees(ATOMS, owned)
            own = out[owned.start : owned.start + len(subtrees)]
            for node, (begin, length) in zip(own, subtrees, strict=True):
                wanted = numpy_tree(leaves[begin : begin + length])
                assert node.numpy().tobytes() == wanted.tobytes()


@pytest.mark.parametrize("merges", [[1, 0], [0, 2], [0, -1]])
def test_a_merge_needs_two_sums(merges: list[int], quantized: Maker) -> None:
    weight = quantized(16, [(0, 8), (8, 16)], [0, 1, 2])
    with pytest.raises(InputError, match="E-KERNEL-SHAPE merges"):
        ops.linear(torch.ones(1, 16), weight, torch.tensor(merges, dtype=torch.int32))


def test_too_many_waiting_sums_are_refused(quantized: Maker) -> None:
    weight = quantized(16, [(0, 8)], [0] * 17 + [1])
    with pytest.raises(InputError, match="at most 16 sums"):
        ops.linear(torch.ones(1, 8), weight, torch.zeros(17, dtype=torch.int32))
