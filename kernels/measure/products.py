"""Products to measure: one shape in one number format, beside torch and beside a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ..program import record
from ..program.program import Program
from ..step.step import StepLimits
from ..weights.layout import pack_dense, pack_quantized
from ..weights.memory import kept
from ..weights.weight import PackedWeight
from .compare import Case
from .steps import one_position

KINDS = ("int4", "int4-asymmetric", "int8", "int8-channel", "w8a8", "bfloat16")
GROUP = 128
ATOMS = 8
BF16, PLAIN = "torch bf16 linear", "one loop over K"
CACHE_BYTES = 512 << 20
"""Copies of a weight together exceed any cache: every reading comes from memory."""
MEMORY_BOUND_ROWS = 8
"""With more, computing takes longer than reading."""


def random_weight(kind: str, n: int, k: int, atoms: int) -> PackedWeight:
    """A random weight `[N, K]` in `atoms` segments, with groups of 128 or one scale a channel."""
    if kind == "bfloat16":
        ends = [k * atom // atoms // 2 * 2 for atom in range(atoms)] + [k]
        return pack_dense(torch.randn(n, k).bfloat16(), segments=ends)
    bits = 4 if kind.startswith("int4") else 8
    whole = kind in ("int8-channel", "w8a8")
    width = -(-k // atoms) if whole else GROUP
    runs = [(begin, min(begin + width, k)) for begin in range(0, k, width)]
    zeros = torch.randint(0, 16, (n, len(runs)), dtype=torch.uint8)
    return pack_quantized(
        torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8),
        torch.rand(n, len(runs)).half(),
        zeros if kind == "int4-asymmetric" else None,
        bits=bits,
        runs=runs,
        segments=[len(runs) * atom // atoms for atom in range(atoms + 1)],
        activation="int8" if kind == "w8a8" else "float",
    )


def product_case(kind: str, n: int, k: int, rows: int) -> Case:
    """A row-parallel product over 8 atoms with bf16 activations and random weights.

    Beside it: the same without atoms (one plain loop over K), and torch's kernels.
    """
    weight = random_weight(kind, n, k, ATOMS)
    copies = 2 + CACHE_BYTES // weight.nbytes if rows <= MEMORY_BOUND_ROWS else 1
    plain = random_weight(kind, n, k, 1)
    rivals = {PLAIN: _recorded(_copies(plain, copies), rows, 1)}
    rivals |= _torch(kind, n, k, rows, copies)
    return Case(
        op=kind,
        shape=f"{n} x {k}",
        rows=rows,
        nbytes=weight.nbytes,
        operations=2 * rows * n * k,
        calls=copies,
        run=_recorded(_copies(weight, copies), rows, ATOMS),
        rivals=rivals,
    )


def _recorded(weights: Sequence[PackedWeight], rows: int, atoms: int) -> Callable[[], None]:
    """All products in one call of a program: Python is not what is measured."""
    program = Program(StepLimits(vocabulary=1, positions=1, pages=1))
    x = program.buffer(weights[0].k, torch.bfloat16)
    out = program.buffer(weights[0].n, torch.float32)
    merges = [(i & -i).bit_length() - 1 for i in range(1, atoms + 1)]
    for weight in weights:
        record.linear(program, x, [weight], [out], merges=torch.tensor(merges, dtype=torch.int32))
    step = one_position(rows)
    program.run(step)
    program.rows_of(x).copy_(torch.randn(rows, weights[0].k))
    return lambda: program.run(step)


def _copies(weight: PackedWeight, count: int) -> list[PackedWeight]:
    return [weight] + [
        replace(
            weight,
            data=kept(weight.data),
            scales=None if weight.scales is None else kept(weight.scales),
            zeros=None if weight.zeros is None else kept(weight.zeros),
        )
        for _ in range(count - 1)
    ]


def _torch(kind: str, n: int, k: int, rows: int, copies: int) -> dict[str, Callable[[], object]]:
    """Torch's kernel for the kind, and its bf16 product, on as many weights as ours."""
    x = torch.randn(rows, k).bfloat16()

    def over(made: torch.Tensor, call: Callable[[torch.Tensor], object]) -> Callable[[], object]:
        weights = [made] + [made.clone() for _ in range(copies - 1)]
        return lambda: [call(weight) for weight in weights]

    dense = torch.randn(n, k).bfloat16()
    runs = {BF16: over(dense, lambda w: torch.nn.functional.linear(x, w))}
    if kind.startswith("int4"):
        codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
        made = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        tables = torch.randn(k // GROUP, n, 2).bfloat16()
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        runs["torch int4"] = over(made, lambda w: product(x, w, GROUP, tables))
    elif kind == "w8a8":
        made = torch.randint(-128, 128, (n, k), dtype=torch.int8)
        inputs = torch.randint(-128, 128, (rows, k), dtype=torch.int8)
        runs["torch int8 x int8"] = over(made, lambda w: torch.ops.aten._int_mm(inputs, w.t()))
    elif kind.startswith("int8"):
        made = torch.randint(-128, 128, (n, k), dtype=torch.int8)
        scales = torch.rand(n).bfloat16()
        product8 = torch.ops.aten._weight_int8pack_mm
        runs["torch int8"] = over(made, lambda w: product8(x, w, scales))
    return runs
