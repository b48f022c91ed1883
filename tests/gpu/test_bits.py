"""Bits of products: the same for any rows beside a row, any blocks, schedules and degrees."""

from __future__ import annotations

import pytest
import torch

from isobit.kernels.gpu.architecture import ARCHITECTURES
from isobit.kernels.gpu.table import Block, product_blocks
from isobit.kernels.weights import layout
from isobit.kernels.weights.weight import PackedWeight
from isobit.runtime.collectives.tree import subtree_merges, sum_root
from isobit.shard.plan.atoms import atoms_of_rank, complete_subtrees

from .weights import product, quantized, spans

ATOMS = 8
ROOT = subtree_merges(ATOMS, range(ATOMS))
KINDS = ["int4", "int4 channel", "int8", "w8a8", "bfloat16"]
WIDTH = 96
ENDS = [WIDTH * atom for atom in range(ATOMS + 1)]


def make(kind: str, atoms: range) -> PackedWeight:
    """The part of one and the same weight that belongs to some atoms, 96 features each."""
    torch.manual_seed(7)
    n, k = 40, ENDS[-1]
    codes = torch.randint(0, 16 if "int4" in kind else 256, (n, k), dtype=torch.uint8)
    values = torch.randn(n, k).bfloat16()
    scales = torch.rand(n, k // 32).half()
    columns = slice(ENDS[atoms.start], ENDS[atoms.stop])
    k = columns.stop - columns.start
    if kind == "bfloat16":
        return layout.pack_dense(values[:, columns], segments=ENDS[: len(atoms) + 1])
    width = 32 if kind == "int4" else WIDTH
    runs = spans(width, k)
    return layout.pack_quantized(
        codes[:, columns].contiguous(),
        scales[:, columns.start // 32 : columns.stop // 32][:, :: width // 32].contiguous(),
        None,
        bits=4 if "int4" in kind else 8,
        runs=runs,
        segments=[len(runs) * i // len(atoms) for i in range(len(atoms) + 1)],
        activation="int8" if kind == "w8a8" else "float",
    )


def blocks() -> list[Block]:
    found = {
        (block.rows, block.columns, block.loop): block
        for architecture in ARCHITECTURES.values()
        for block in product_blocks(architecture)
    }
    return list(found.values())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_blocks_and_schedules(kind: str, device: str) -> None:
    weight = make(kind, range(ATOMS))
    x = torch.randn(17, weight.k).bfloat16()
    wanted = product(x, weight, device, ROOT)
    for row in (0, 16):
        alone = product(x[row : row + 1], weight, device, ROOT)
        assert torch.equal(alone[0, 0], wanted[0, row])
    assert torch.equal(product(x[:5], weight, device, ROOT), wanted[:, :5])
    for block in blocks():
        out = product(x[8:], weight, device, ROOT, block=block)
        assert torch.equal(out, wanted[:, 8:]), block


@pytest.mark.parametrize("kind", KINDS)
def test_degrees(kind: str, device: str) -> None:
    x = torch.randn(3, ENDS[-1]).bfloat16()
    wanted = product(x, make(kind, range(ATOMS)), device, ROOT)[0]
    for degree in (2, 3, 4, 8):
        nodes, values = [], []
        for rank in range(degree):
            owned = atoms_of_rank(ATOMS, degree, rank)
            own = x[:, ENDS[owned.start] : ENDS[owned.stop]].contiguous()
            merges = subtree_merges(ATOMS, owned)
            values += list(product(own, make(kind, owned), device, merges))
            nodes += complete_subtrees(ATOMS, owned)
        assert torch.equal(sum_root(nodes, values, ATOMS), wanted), degree


def test_the_root_is_the_tree_over_segments(device: str) -> None:
    weight = quantized(40, spans(64, 512), list(range(ATOMS + 1)), zeros=True)
    x = torch.randn(5, 512).half()
    a = product(x, weight, device)
    tree = ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]))
    loop = Block(rows=16, columns=64, warps=4, stages=2, loop=True)
    for block in (None, loop):
        assert torch.equal(product(x, weight, device, ROOT, block=block)[0], tree)


def test_the_unit_of_a_rank_changes_no_bit(device: str) -> None:
    """Ranks may hold groups cut at 32, 64 or 128 features; the same group adds up alike in each."""
    torch.manual_seed(3)
    codes = torch.randint(0, 16, (64, 32), dtype=torch.uint8)
    x, results = torch.randn(4, 32).bfloat16(), []
    for other in (32, 64, 128):
        wide = torch.cat([codes, torch.randint(0, 16, (64, other), dtype=torch.uint8)], dim=1)
        weight = layout.pack_quantized(
            wide, torch.ones(64, 2), None, bits=4, runs=[(0, 32), (32, 32 + other)],
            segments=[0, 1, 2],
        )  # fmt: skip
        padded = torch.cat([x, torch.randn(4, other).bfloat16()], dim=1)
        results.append(product(padded, weight, device)[0])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
