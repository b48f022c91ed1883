"""Whether the CUDA kernels are right on this card, and whether bits are where they are promised."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from isobit.kernels import layout, ops, reference
from isobit.kernels.gpu.architecture import architecture_of
from isobit.kernels.gpu.attention import Heads, attention_work, plan_chunks
from isobit.kernels.gpu.launch import run_all
from isobit.kernels.gpu.layout import to_gpu
from isobit.kernels.gpu.linear import product_work, tree_nodes
from isobit.kernels.gpu.table import product_blocks
from isobit.kernels.weight import PackedWeight
from isobit.runtime.collectives.tree import subtree_merges, sum_root
from isobit.shard.atoms import atoms_of_rank, complete_subtrees

ATOMS, N, K, GROUP = 8, 520, 2048, 128
KINDS = ("int4", "int4 asymmetric", "int4 channel", "int8", "int8 channel", "w8a8", "bfloat16")
ROWS = (1, 7, 16, 33, 64, 100, 300)
CUDA = torch.device("cuda")


class Failed(Exception):
    """A kernel is wrong, or bits differ where they may not."""


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Failed(message)


def weight_of(kind: str, atoms: range) -> PackedWeight:
    """The part of one random weight `[N, K]` that belongs to some atoms."""
    torch.manual_seed(11)
    width = K // ATOMS
    columns = slice(atoms.start * width, atoms.stop * width)
    values = torch.randn(N, K).bfloat16()
    bits = 4 if kind.startswith("int4") else 8
    codes = torch.randint(0, 1 << bits, (N, K), dtype=torch.uint8)
    scales, zeros = torch.rand(N, K // GROUP).half(), torch.randint(0, 17, (N, K // GROUP))
    if kind == "bfloat16":
        ends = [width * i for i in range(len(atoms) + 1)]
        return layout.pack_dense(values[:, columns], segments=ends)
    step = width if kind in ("int4 channel", "int8 channel", "w8a8") else GROUP
    groups = slice(columns.start // GROUP, columns.stop // GROUP, step // GROUP)
    runs = [(begin, begin + step) for begin in range(0, columns.stop - columns.start, step)]
    asymmetric = kind.endswith("asymmetric")
    return layout.pack_quantized(
        codes[:, columns].contiguous(),
        scales[:, groups].contiguous(),
        zeros[:, groups].to(torch.uint8).contiguous() if asymmetric else None,
        bits=bits,
        runs=runs,
        segments=[len(runs) * i // len(atoms) for i in range(len(atoms) + 1)],
        activation="int8" if kind == "w8a8" else "float",
    )


def product(x: torch.Tensor, weight: PackedWeight, merges: list[int] | None) -> torch.Tensor:
    """fp32 `[planes, M, N]`, on the CPU."""
    steps = None if merges is None else torch.tensor(merges, dtype=torch.int32)
    return ops.linear(x.to(CUDA), to_gpu(weight, CUDA), steps).cpu()


def values(kind: str) -> str:
    """Products of every number of rows against float64."""
    weight, worst = weight_of(kind, range(ATOMS)), 0.0
    dense = reference.dense_segments(weight).transpose(1, 2)
    for rows in ROWS:
        for dtype in (torch.bfloat16,) if kind == "bfloat16" else (torch.bfloat16, torch.float16):
            x = torch.randn(rows, K).to(dtype)
            if kind == "w8a8":
                same = torch.equal(product(x, weight, None), ops.linear(x, weight))
                require(same, f"{rows} rows: not the bits of the CPU")
                continue
            bound = (K + 8) * 2.0**-24 * (x.double().abs() @ dense.abs())
            error = (product(x, weight, None).double() - x.double() @ dense).abs() / bound
            worst = max(worst, float(error.max()))
            require(worst <= 1, f"{rows} rows: {worst:.2f} times what rounding explains")
    return f"at most {worst:.3f} of what rounding may do"


def bits(kind: str) -> str:
    """A row's bits in batches, blocks, schedules and at degrees 1, 2, 3, 4 and 8."""
    weight, root = weight_of(kind, range(ATOMS)), subtree_merges(ATOMS, range(ATOMS))
    x = torch.randn(max(ROWS), K).bfloat16()
    wanted = product(x, weight, root)
    for rows in ROWS:
        same = torch.equal(product(x[-rows:], weight, root)[0], wanted[0, -rows:])
        require(same, f"{rows} rows")
    there, inputs = to_gpu(weight, CUDA), x.to(CUDA)
    nodes = tree_nodes(root)
    blocks = product_blocks(architecture_of(CUDA))
    for block in blocks:
        out = torch.empty(1, len(x), N, device=CUDA)
        run_all(product_work(inputs, there, out, nodes, block=block).launches)
        require(torch.equal(out.cpu(), wanted), f"{block}")
    for degree in (2, 3, 4, 8):
        places, sums = [], []
        for rank in range(degree):
            owned = atoms_of_rank(ATOMS, degree, rank)
            own = x[:, owned.start * K // ATOMS : owned.stop * K // ATOMS].contiguous()
            sums += list(product(own, weight_of(kind, owned), subtree_merges(ATOMS, owned)))
            places += complete_subtrees(ATOMS, owned)
        require(torch.equal(sum_root(places, sums, ATOMS), wanted[0]), f"degree {degree}")
    return f"{len(ROWS)} numbers of rows, {len(blocks)} blocks, degrees 1, 2, 3, 4, 8"


def attention() -> str:
    """Values, and a row's bits alone, among others, split and not."""
    length, heads, kv, head = 1500, 10, 2, 128
    pages = -(-length // ops.PAGE)
    cache = ops.KVCache.allocate(pages, kv, head, torch.bfloat16)
    cache.keys.normal_(), cache.values.normal_()
    tables = torch.randperm(pages).to(torch.int32)[None]
    positions = torch.arange(length - 40, length, dtype=torch.int32)
    sequence = torch.zeros(40, dtype=torch.int32)
    q = torch.randn(40, heads, head).bfloat16()
    to_kv = [h * kv // heads for h in range(heads)]
    exact = reference.attention(
        q, cache, block_tables=tables, row_sequence=sequence, positions=positions,
        head_to_kv=torch.tensor(to_kv), scale=head**-0.5,
    )  # fmt: skip
    there = ops.KVCache(cache.keys.to(CUDA), cache.values.to(CUDA))
    shared = Heads.of(to_kv, kv, CUDA, head)

    def run(rows: slice, columns: int, split: bool) -> torch.Tensor:
        chunks = plan_chunks(sequence[rows], positions[rows], shared, CUDA, columns=columns)
        out = torch.empty(len(q[rows]), heads * head, dtype=q.dtype, device=CUDA)
        run_all(
            attention_work(
                q[rows].to(CUDA).flatten(1), there, out, block_tables=tables.to(CUDA),
                row_sequence=sequence[rows].to(CUDA), positions=positions[rows].to(CUDA),
                heads=shared, chunks=chunks, scale=head**-0.5, split=split,
            ).launches
        )  # fmt: skip
        return out.cpu()

    wanted = run(slice(None), 32, False)
    error = float((wanted.double() - exact).abs().max())
    require(error <= 2.0**-7, f"off by {error}")
    for rows in (slice(0, 1), slice(39, 40), slice(None)):
        for columns in (16, 32):
            for split in (False, True):
                same = torch.equal(run(rows, columns, split), wanted[rows])
                require(same, f"rows {rows}, {columns} columns, split {split}")
    return f"at most {error:.1e} off; alone, among others, split and not"


def rest() -> str:
    """Norm, silu * up, greedy choice and digest on the card against the CPU."""
    x, weight = torch.randn(9, 5120), torch.randn(5120)
    normed = ops.rms_norm(x.to(CUDA), weight.to(CUDA), 1e-6, torch.float32).cpu()
    wanted = reference.rms_norm(x, weight, 1e-6)
    require(torch.allclose(normed.double(), wanted, 1e-5, 1e-6), "norm")
    gated = ops.silu_mul(x.to(CUDA), x.to(CUDA), torch.float32).cpu()
    wanted = reference.silu_mul(x, x)
    require(torch.allclose(gated.double(), wanted, 1e-5, 1e-6), "silu * up")
    logits = torch.randn(3, 152064)
    logits[1, 7], logits[2, [5, 9]] = math.nan, 99.0
    require(ops.greatest(logits.to(CUDA)) == ops.greatest(logits), "greedy choice")
    one, again, other = (ops.digest(tensor.to(CUDA)) for tensor in (x, x.clone(), -x))
    require(one == again != other, "digest")
    return "norm, silu * up, greedy choice, digest"


def checks() -> dict[str, Callable[[], str]]:
    """All of them by name; each returns what it saw, or raises Failed."""
    found: dict[str, Callable[[], str]] = {}
    for kind in KINDS:
        found[f"values of {kind}"] = lambda kind=kind: values(kind)
        found[f"bits of {kind}"] = lambda kind=kind: bits(kind)
    return found | {"attention": attention, "other ops": rest}
